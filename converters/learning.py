"""Learn by running: which inputs a model accepts, what it gives, and which dimensions follow the inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from controlplane.domain.samples import Tensors
from controlplane.domain.signature import DYNAMIC, Array, DataType, Signature, TensorSpec
from controlplane.errors import ConversionFailedError, InvalidInputError
from converters.options import SamplingOptions
from converters.runtimes import RunError
from converters.sampling import Guess, generate_inputs, guesses

Run = Callable[[Tensors], dict[str, Array]]


@dataclass(frozen=True, slots=True)
class Tried:
    """Sample inputs that the original accepts.

    Attributes:
        inputs: The inputs of each sample.
        outputs: What the original answered to each.
        guess: What the generator assumed; None where the samples were given.
    """

    inputs: tuple[Tensors, ...]
    outputs: tuple[dict[str, Array], ...]
    guess: Guess | None


def try_samples(
    run: Run,
    specs: Sequence[TensorSpec],
    given: tuple[Tensors, ...],
    options: SamplingOptions,
    *,
    batched: bool,
    guess: Guess | None = None,
) -> Tried:
    """Run the original on the given inputs, or on generated ones that it accepts.

    Args:
        run: The original.
        specs: Its inputs.
        given: Inputs to use; none generates them.
        options: How to generate.
        batched: Whether generated samples differ in batch size.
        guess: With which guess ``given`` was generated, where it was.

    Raises:
        ConversionFailedError: It fails on the given inputs, or on all that were generated.
    """
    if given:
        return Tried(given, tuple(_must_run(run, inputs, number) for number, inputs in enumerate(given)), guess)
    first: RunError | None = None
    for guess in guesses(specs, options):
        inputs = generate_inputs(specs, options, guess, batched=batched)
        try:
            return Tried(inputs, tuple(run(sample) for sample in inputs), guess)
        except RunError as error:
            first = first or error
    raise ConversionFailedError(
        f"the original accepts none of the generated inputs ({first}); give samples, or sample_shapes for the inputs "
        "whose dynamic sizes are not free"
    ) from first


def _must_run(run: Run, inputs: Tensors, number: int) -> dict[str, Array]:
    try:
        return run(inputs)
    except RunError as error:
        raise ConversionFailedError(f"the original fails on the given sample {number}: {error}") from error


def specs_from_samples(samples: Sequence[Tensors]) -> tuple[TensorSpec, ...]:
    """Return input specs from given inputs: a dimension that differs between samples is dynamic.

    Raises:
        InvalidInputError: The samples differ in names, types or number of dimensions.
    """
    specs = []
    for name, array in samples[0].items():
        shapes = []
        for number, sample in enumerate(samples):
            other = sample.get(name)
            if other is None or other.ndim != array.ndim or DataType.of(other) is not DataType.of(array):
                raise InvalidInputError(f"sample {number}: input {name!r} is not like that of sample 0")
            shapes.append(other.shape)
        sizes = tuple(at[0] if len(set(at)) == 1 else DYNAMIC for at in zip(*shapes, strict=True))
        specs.append(TensorSpec(name=name, dtype=DataType.of(array), shape=sizes))
    return tuple(specs)


def learn_signature(
    run: Run, specs: tuple[TensorSpec, ...], options: SamplingOptions, guess: Guess, *, batched: bool | None
) -> Signature:
    """Find the outputs' types and dynamic dimensions by running the model on inputs of several sizes.

    Args:
        run: The model.
        specs: Its inputs.
        options: The seed and the sizes to use.
        guess: Sizes and values that the model accepts.
        batched: Whether the first dimension is the batch; None finds out: it is, if every first dimension is dynamic
            and two rows together get the answers that each gets alone.

    Raises:
        ConversionFailedError: ``batched`` is True and the outputs do not follow the batch.
    """
    one = options.model_copy(update={"sample_count": 1})
    base_inputs = generate_inputs(specs, one, guess, batched=False)[0]
    base = run(base_inputs)
    variants = [base]
    for changed_options, changed_guess in (
        (one.model_copy(update={"batch_size": one.batch_size + 1}), guess),
        (one, replace(guess, dynamic_size=guess.dynamic_size + 1)),
    ):
        try:
            variants.append(run(generate_inputs(specs, changed_options, changed_guess, batched=False)[0]))
        except RunError:
            continue  # not every size is free; what does not run teaches nothing
    outputs = []
    for name, array in base.items():
        shapes = [variant[name].shape for variant in variants if variant[name].ndim == array.ndim]
        sizes = tuple(at[0] if len(set(at)) == 1 else DYNAMIC for at in zip(*shapes, strict=True))
        outputs.append(TensorSpec(name=name, dtype=DataType.of(array), shape=sizes))
    leading = all(spec.shape[:1] == (DYNAMIC,) for spec in (*specs, *outputs))
    if batched and not leading:
        odd = next(spec for spec in (*specs, *outputs) if spec.shape[:1] != (DYNAMIC,))
        raise ConversionFailedError(f"the model is said to batch, but the first dimension of {odd} does not follow it")
    if batched is None:
        batched = leading and rows_are_independent(run, base_inputs, base)
    return Signature(inputs=specs, outputs=tuple(outputs), batched=batched)


def rows_are_independent(run: Run, inputs: Tensors, together: Mapping[str, Array]) -> bool:
    """Whether each row of a batch gets the answer that it gets alone."""
    rows = {array.shape[0] for array in (*inputs.values(), *together.values()) if array.ndim}
    if len(rows) != 1 or rows == {1} or any(array.ndim == 0 for array in (*inputs.values(), *together.values())):
        return False
    try:
        alone = [run({name: array[row : row + 1] for name, array in inputs.items()}) for row in range(rows.pop())]
    except RunError:
        return False
    return all(_alike(np.concatenate([answer[name] for answer in alone]), array) for name, array in together.items())


def _alike(left: Array, right: Array) -> bool:
    if left.shape != right.shape:
        return False
    if right.dtype.kind == "f":
        return bool(np.allclose(left, right, rtol=1e-3, atol=1e-4, equal_nan=True))
    return bool(np.array_equal(left, right))
