"""Make sample inputs from a signature: always the same for one seed, small, and of values that models accept."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from controlplane.domain.signature import DYNAMIC, Array, DataType, TensorSpec
from controlplane.errors import InvalidInputError
from converters.options import SamplingOptions

MAX_SAMPLE_BYTES = 64 * 1024**2
"""A generated sample is a probe; a signature that asks for more than this needs samples of its own."""

_SIZES = (8, 16, 1, 32, 64, 128, 224, 256, 512, 576)
_INTEGER_HIGHS = (10, 2)


@dataclass(frozen=True, slots=True)
class Guess:
    """What the generator assumes where neither signature nor options say it.

    Attributes:
        dynamic_size: Size of every dynamic dimension but the batch.
        integer_high: Integers lie in [0, integer_high).
        inner_is_batch: Whether a dynamic dimension that is neither first nor last is the batch, as in a recurrent
            model's state ``[layers, batch, features]``.
    """

    dynamic_size: int
    integer_high: int
    inner_is_batch: bool = False


def guesses(specs: Sequence[TensorSpec], options: SamplingOptions) -> Iterator[Guess]:
    """Yield the assumptions worth trying, the likeliest first; one alone where nothing is open."""
    open_sizes = any(
        DYNAMIC in spec.shape[1:] or (spec.shape[:1] == (DYNAMIC,) and len(spec.shape) == 1)
        for spec in specs
        if spec.name not in options.sample_shapes
    )
    sizes = (options.dynamic_size,) if options.dynamic_size else _SIZES if open_sizes else _SIZES[:1]
    integers = any(spec.dtype.numpy.kind in "iu" for spec in specs)
    highs = (options.integer_high,) if options.integer_high else _INTEGER_HIGHS if integers else _INTEGER_HIGHS[:1]
    inner = (False, True) if any(DYNAMIC in spec.shape[1:-1] for spec in specs) else (False,)
    for high in highs:
        for size in sizes:
            for inner_is_batch in inner:
                yield Guess(size, high, inner_is_batch)


def generate_inputs(
    specs: Sequence[TensorSpec], options: SamplingOptions, guess: Guess, *, batched: bool
) -> tuple[dict[str, Array], ...]:
    """Generate the inputs of ``options.sample_count`` samples.

    Floats are drawn from N(0, 1), integers and booleans evenly, strings as short words. Samples of a batched model
    differ in batch size, so that a batch dimension which a conversion froze is found out.

    Raises:
        InvalidInputError: One sample would be larger than `MAX_SAMPLE_BYTES`.
    """
    random = np.random.default_rng(options.seed)
    batches = [options.batch_size, 1, options.batch_size + 1]
    samples = []
    for number in range(options.sample_count):
        batch = batches[number % len(batches)] if batched else options.batch_size
        shapes = {spec.name: _shape(spec, options, guess, batch) for spec in specs}
        total = sum(int(np.prod(shapes[spec.name], dtype=np.float64)) * (spec.dtype.size_bytes or 16) for spec in specs)
        if total > MAX_SAMPLE_BYTES:
            raise InvalidInputError(
                f"a generated sample would have {total} bytes; at most {MAX_SAMPLE_BYTES} are generated: give samples, "
                "or sample_shapes"
            )
        samples.append({spec.name: _values(spec, shapes[spec.name], guess, random) for spec in specs})
    return tuple(samples)


def _shape(spec: TensorSpec, options: SamplingOptions, guess: Guess, batch: int) -> tuple[int, ...]:
    if spec.name in options.sample_shapes:
        shape = options.sample_shapes[spec.name]
        if not spec.accepts(shape):
            raise InvalidInputError(f"sample_shapes[{spec.name!r}] is {list(shape)}; the signature says {spec}")
        return shape
    batches = range(len(spec.shape) - 1) if guess.inner_is_batch else (0,)
    return tuple(
        size if size != DYNAMIC else batch if axis in batches else guess.dynamic_size
        for axis, size in enumerate(spec.shape)
    )


def _values(spec: TensorSpec, shape: tuple[int, ...], guess: Guess, random: np.random.Generator) -> Array:
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
    return np.asarray(random.integers(0, guess.integer_high, size=shape), dtype=spec.dtype.numpy)
