"""Generation of sample inputs from a signature: deterministic for a seed, small, with values that models accept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from pydantic import JsonValue

from controlplane.domain.arrays import Array
from controlplane.domain.signature import DYNAMIC, DataType, TensorSpec
from controlplane.errors import InvalidInputError
from converters.options import SamplingOptions

MAX_SAMPLE_BYTES = 64 * 1024**2
"""Size limit of a generated sample; if a signature needs more, the publisher must give samples."""

_SIZES = (8, 16, 32, 64, 128, 224, 256, 512, 576, 640, 1, 2, 3)
_INTEGER_HIGHS = (10, 2)


class Integers(StrEnum):
    """How integer inputs get their values."""

    RANDOM = "random"
    ONES = "ones"
    SHAPES = "shapes"
    """Vectors of integers are treated as shapes: they get the sizes of an output with as many dimensions."""


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a file declares about its inputs beyond names, types and shapes.

    Attributes:
        symbols: Names of dimensions by input; dimensions with equal names have the same size.
        vocabularies: By integer input, the number of entries of the table that it selects from.
        outputs: The declared outputs, for inputs that contain the shapes of outputs.
    """

    symbols: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    vocabularies: Mapping[str, int] = field(default_factory=dict)
    outputs: Sequence[TensorSpec] = ()

    @classmethod
    def read(cls, attributes: Mapping[str, JsonValue], outputs: Sequence[TensorSpec]) -> "Constraints":
        """Read the constraints from an inspection's attributes."""
        dimensions, vocabularies = attributes.get("dimensions"), attributes.get("vocabularies")
        return cls(
            symbols={
                name: [size if isinstance(size, str) else None for size in sizes]
                for name, sizes in (dimensions.items() if isinstance(dimensions, dict) else ())
                if isinstance(sizes, list)
            },
            vocabularies={
                name: entries
                for name, entries in (vocabularies.items() if isinstance(vocabularies, dict) else ())
                if isinstance(entries, int)
            },
            outputs=outputs,
        )


NO_CONSTRAINTS = Constraints()


class SampleTooLargeError(InvalidInputError):
    """A generated sample would be larger than `MAX_SAMPLE_BYTES`."""


@dataclass(frozen=True, slots=True)
class Guess:
    """What the generator assumes where neither the signature nor the options decide.

    Attributes:
        dynamic_size: Size of every dynamic dimension except the batch.
        integer_high: Integers lie in [0, integer_high).
        inner_is_batch: Whether a dynamic dimension that is neither first nor last is the batch, as in a recurrent
            model's state ``[layers, batch, features]``.
        one_row: Whether every sample has one row.
        integers: How integers are chosen.
    """

    dynamic_size: int
    integer_high: int
    inner_is_batch: bool = False
    one_row: bool = False
    integers: Integers = Integers.RANDOM


def guesses(specs: Sequence[TensorSpec], options: SamplingOptions) -> Iterator[Guess]:
    """Yield the assumptions to try, the most likely first; only one if nothing is open."""
    free = [spec for spec in specs if spec.name not in options.sample_shapes]
    open_sizes = any(DYNAMIC in spec.shape[1:] or spec.shape == (DYNAMIC,) for spec in free)
    sizes = (options.dynamic_size,) if options.dynamic_size else _SIZES if open_sizes else _SIZES[:1]
    inner = (False, True) if any(DYNAMIC in spec.shape[1:-1] for spec in specs) else (False,)
    rows = (False, True) if any(spec.shape[:1] == (DYNAMIC,) for spec in free) else (False,)
    for one_row in rows:
        for integers, high in _integers(specs, options):
            for size in sizes:
                for inner_is_batch in inner:
                    yield Guess(size, high, inner_is_batch, one_row, integers)


def _integers(specs: Sequence[TensorSpec], options: SamplingOptions) -> list[tuple[Integers, int]]:
    kinds = [spec for spec in specs if spec.dtype.numpy.kind in "iu"]
    if options.integer_high:
        return [(Integers.RANDOM, options.integer_high)]
    if not kinds:
        return [(Integers.RANDOM, _INTEGER_HIGHS[0])]
    ways = [(Integers.RANDOM, high) for high in _INTEGER_HIGHS]
    if any(_is_vector_of_sizes(spec) for spec in kinds):
        ways.append((Integers.SHAPES, _INTEGER_HIGHS[0]))
    return [*ways, (Integers.ONES, _INTEGER_HIGHS[0]), (Integers.RANDOM, 1)]


def _is_vector_of_sizes(spec: TensorSpec) -> bool:
    return len(spec.shape) == 1 and spec.dtype in {DataType.INT64, DataType.INT32}


def generate_inputs(
    specs: Sequence[TensorSpec],
    options: SamplingOptions,
    guess: Guess,
    *,
    batched: bool,
    constraints: Constraints = NO_CONSTRAINTS,
) -> tuple[dict[str, Array], ...]:
    """Generate the inputs of ``options.sample_count`` samples.

    Floats are drawn from N(0, 1), integers and booleans uniformly, and strings are short words. Samples of a batched
    model differ in batch size, to detect a conversion that fixed the batch dimension.

    Raises:
        SampleTooLargeError: One sample would be larger than `MAX_SAMPLE_BYTES`.
        InvalidInputError: ``options.sample_shapes`` contradicts the specs.
    """
    random = np.random.default_rng(options.seed)
    batches = [1] if guess.one_row else [options.batch_size, 1, options.batch_size + 1]
    samples = []
    for number in range(options.sample_count):
        batch = batches[number % len(batches)] if batched else batches[0]
        sizes = _symbol_sizes(specs, guess, batch, constraints)
        shapes = {spec.name: _shape(spec, options, guess, batch, sizes.get(spec.name, {})) for spec in specs}
        total = sum(int(np.prod(shapes[spec.name], dtype=np.float64)) * (spec.dtype.size_bytes or 16) for spec in specs)
        if total > MAX_SAMPLE_BYTES:
            raise SampleTooLargeError(
                f"a generated sample would have {total} bytes; the limit is {MAX_SAMPLE_BYTES}; give samples, or "
                "sample_shapes"
            )
        samples.append({spec.name: _values(spec, shapes[spec.name], guess, random, constraints) for spec in specs})
    return tuple(samples)


def _symbol_sizes(
    specs: Sequence[TensorSpec], guess: Guess, batch: int, constraints: Constraints
) -> dict[str, dict[int, int]]:
    """Return the sizes of the named dimensions, by input and axis.

    A name that occurs only as a first dimension is the batch. A name that is a sum, as in ``past + 1``, has the sum of
    the sizes of its parts.
    """
    named = {
        spec.name: {
            axis: name
            for axis, name in enumerate(constraints.symbols.get(spec.name, ()))
            if name and axis < len(spec.shape) and spec.shape[axis] == DYNAMIC
        }
        for spec in specs
    }
    inner = {name for axes in named.values() for axis, name in axes.items() if axis}
    firsts = {axes[0] for axes in named.values() if 0 in axes} - inner

    def size(name: str) -> int:
        if name in firsts:
            return batch
        parts = [part.strip() for part in name.split("+")]
        if len(parts) == 1:
            return int(name) if name.isdigit() and 0 < int(name) <= MAX_SAMPLE_BYTES else guess.dynamic_size
        return sum(size(part) for part in parts)

    return {tensor: {axis: size(name) for axis, name in axes.items()} for tensor, axes in named.items()}


def _shape(
    spec: TensorSpec, options: SamplingOptions, guess: Guess, batch: int, named: Mapping[int, int]
) -> tuple[int, ...]:
    if spec.name in options.sample_shapes:
        shape = options.sample_shapes[spec.name]
        if not spec.accepts(shape):
            raise InvalidInputError(f"sample_shapes[{spec.name!r}] is {list(shape)}, but the signature requires {spec}")
        return shape
    batches = range(len(spec.shape) - 1) if guess.inner_is_batch else (0,)
    return tuple(
        size if size != DYNAMIC else named.get(axis, batch if axis in batches else guess.dynamic_size)
        for axis, size in enumerate(spec.shape)
    )


def _values(
    spec: TensorSpec, shape: tuple[int, ...], guess: Guess, random: np.random.Generator, constraints: Constraints
) -> Array:
    if spec.dtype is DataType.BYTES:
        letters = np.array(list(b"abcdefghijklmnopqrstuvwxyz"), dtype=np.uint8)
        words = np.empty(int(np.prod(shape, dtype=np.int64)), dtype=object)
        for index in range(words.size):
            words[index] = random.choice(letters, size=int(random.integers(3, 9))).tobytes()
        return words.reshape(shape)
    if spec.dtype is DataType.BOOL:
        return np.asarray(random.integers(0, 2, size=shape), dtype=np.bool_)
    if spec.dtype.is_float:
        return np.asarray(random.standard_normal(shape), dtype=spec.dtype.numpy)
    if guess.integers is Integers.SHAPES and _is_vector_of_sizes(spec):
        for output in constraints.outputs:
            if (len(output.shape),) == shape and spec.name not in constraints.vocabularies:
                sizes = [guess.dynamic_size if size == DYNAMIC else size for size in output.shape]
                return np.asarray(sizes, dtype=spec.dtype.numpy)
    if guess.integers is Integers.ONES and constraints.vocabularies.get(spec.name, 2) > 1:
        return np.ones(shape, dtype=spec.dtype.numpy)
    high = max(min(guess.integer_high, constraints.vocabularies.get(spec.name, guess.integer_high)), 1)
    return np.asarray(random.integers(0, high, size=shape), dtype=spec.dtype.numpy)
