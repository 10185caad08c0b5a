"""Inference of signatures by running a model: accepted inputs, outputs, and dimensions that depend on the inputs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from controlplane.domain.arrays import Array
from controlplane.domain.samples import Tensors
from controlplane.domain.signature import DYNAMIC, DataType, Signature, TensorSpec
from controlplane.errors import ConversionFailedError, InvalidInputError
from converters.options import SamplingOptions
from converters.rows import rows_problem
from converters.runtimes import Run, RunError
from converters.sampling import NO_CONSTRAINTS, Constraints, Guess, SampleTooLargeError, generate_inputs, guesses

TRY_SECONDS = 120.0
"""Time limit for trying generated inputs, one assumption after another."""


@dataclass(frozen=True, slots=True)
class TrialRun:
    """Sample inputs that the original accepts, with its answers.

    Attributes:
        inputs: The inputs of each sample.
        outputs: The original's answer to each sample.
        guess: What the generator assumed; None if the samples were given.
        notes: Notes about the samples for the publisher.
        rows_independent: Whether each row of a batch gets the same answer as when it is sent alone; None if that was
            not compared.
    """

    inputs: tuple[Tensors, ...]
    outputs: tuple[dict[str, Array], ...]
    guess: Guess | None
    notes: tuple[str, ...] = ()
    rows_independent: bool | None = None


def try_samples(
    run: Run,
    specs: Sequence[TensorSpec],
    given: tuple[Tensors, ...],
    options: SamplingOptions,
    *,
    batched: bool,
    guess: Guess | None = None,
    constraints: Constraints = NO_CONSTRAINTS,
) -> TrialRun:
    """Run the original on the given inputs, or on generated ones that it accepts.

    Args:
        run: The original.
        specs: The original's inputs.
        given: Inputs to use; if empty, inputs are generated.
        options: How to generate inputs.
        batched: Whether generated samples differ in batch size.
        guess: The guess with which ``given`` was generated, if it was generated.
        constraints: What the file declares about the inputs, for generated inputs.

    Raises:
        ConversionFailedError: The original fails on the given inputs, or on all generated ones.
    """
    if given:
        return TrialRun(given, tuple(_must_run(run, inputs, number) for number, inputs in enumerate(given)), guess)
    first: RunError | SampleTooLargeError | None = None
    deadline = time.monotonic() + TRY_SECONDS
    for guess in guesses(specs, options):
        if first is not None and time.monotonic() > deadline:
            break
        try:
            inputs = generate_inputs(specs, options, guess, batched=batched, constraints=constraints)
            return TrialRun(inputs, tuple(run(sample) for sample in inputs), guess)
        except (RunError, SampleTooLargeError) as error:
            first = first or error
    raise ConversionFailedError(
        f"the model accepts none of the generated inputs ({first}); give samples, or sample_shapes for the inputs "
        "whose dynamic sizes depend on each other"
    ) from first


def _must_run(run: Run, inputs: Tensors, number: int) -> dict[str, Array]:
    try:
        return run(inputs)
    except RunError as error:
        raise ConversionFailedError(f"the model fails on the given sample {number}: {error}") from error


def specs_from_samples(samples: Sequence[Tensors]) -> tuple[TensorSpec, ...]:
    """Return specs from samples: dimensions that differ between them or have size 0 are dynamic.

    No tensor of a model in Triton has a dimension fixed at 0, so such a sample shows that the size varies.

    Raises:
        InvalidInputError: The samples differ in names, types or number of dimensions.
    """
    specs = []
    for name, array in samples[0].items():
        shapes = []
        for number, sample in enumerate(samples):
            other = sample.get(name)
            if other is None or other.ndim != array.ndim or DataType.of(other) is not DataType.of(array):
                raise InvalidInputError(f"sample {number}: input {name!r} differs in type or rank from sample 0")
            shapes.append(other.shape)
        sizes = _sizes(shapes)
        specs.append(TensorSpec(name=name, dtype=DataType.of(array), shape=sizes))
    return tuple(specs)


def _sizes(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(at[0] if len(set(at)) == 1 and at[0] != 0 else DYNAMIC for at in zip(*shapes, strict=True))


def learn_signature(
    run: Run,
    specs: tuple[TensorSpec, ...],
    options: SamplingOptions,
    guess: Guess,
    *,
    batched: bool | None,
    constraints: Constraints = NO_CONSTRAINTS,
) -> Signature:
    """Infer the outputs' types and dynamic dimensions by running the model on inputs of several sizes.

    Args:
        run: The model.
        specs: The model's inputs.
        options: The seed and the sizes to use.
        guess: Sizes and values that the model accepts.
        batched: Whether the first dimension is the batch; None infers it: it is if every first dimension is dynamic
            and two rows together get the same answers as each row alone.
        constraints: What the file declares about the inputs.

    Raises:
        ConversionFailedError: ``batched`` is True, but outputs do not depend on the batch or rows are not independent.
    """
    one = options.model_copy(update={"sample_count": 1})
    base_inputs = generate_inputs(specs, one, guess, batched=False, constraints=constraints)[0]
    base = run(base_inputs)
    variants = [base]
    for changed_options, changed_guess in (
        (one.model_copy(update={"batch_size": one.batch_size + 1}), guess),
        (one, replace(guess, dynamic_size=guess.dynamic_size + 1)),
    ):
        try:
            changed = generate_inputs(specs, changed_options, changed_guess, batched=False, constraints=constraints)
            variants.append(run(changed[0]))
        except RunError:
            continue  # not every size is free; a failed run shows nothing
    outputs = []
    for name, array in base.items():
        shapes = [variant[name].shape for variant in variants if variant[name].ndim == array.ndim]
        sizes = _sizes(shapes)
        outputs.append(TensorSpec(name=name, dtype=DataType.of(array), shape=sizes))
    leading = all(spec.shape[:1] == (DYNAMIC,) for spec in (*specs, *outputs))
    if batched and not leading:
        odd = next(spec for spec in (*specs, *outputs) if spec.shape[:1] != (DYNAMIC,))
        raise ConversionFailedError(
            f"the model is declared as batched, but the first dimension of {odd} does not change with the batch"
        )
    if batched or (batched is None and leading):
        problem = rows_problem(run, base_inputs, base)
        if batched and problem is not None:
            raise ConversionFailedError(
                f"the model is declared as batched, but its rows are not independent: {problem}"
            )
        batched = problem is None
    return Signature(inputs=specs, outputs=tuple(outputs), batched=bool(batched))
