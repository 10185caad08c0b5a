"""Facts that only running a model shows: true output shapes, independent rows, samples of a suitable size."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from controlplane.domain.arrays import Array
from controlplane.domain.samples import Sample, Tensors
from controlplane.domain.signature import DYNAMIC, DataType, Signature, TensorSpec
from controlplane.errors import ConversionFailedError, InvalidInputError
from converters.jobs import Inspection
from converters.options import SamplingOptions
from converters.rows import rows_problem
from converters.runtimes import Run, RunError
from converters.sampling import Constraints, generate_inputs
from converters.signature_inference import TrialRun, learn_signature, specs_from_samples, try_samples

MAX_GOLDEN_BYTES = 64 * 1024**2
"""Limit on the total size of the recorded golden samples, because they are sent to Triton repeatedly."""


class UnservableError(Exception):
    """Running the model showed that Triton cannot serve it; the message says why and what to do."""


def settle(
    run: Run, tried: TrialRun, signature: Signature, *, stated: bool, quantised: bool
) -> tuple[TrialRun, Signature]:
    """Correct a signature from the model's answers, and check whether its rows are independent.

    Args:
        run: The model.
        tried: Inputs and answers.
        signature: The signature that the file or the publisher declares.
        stated: Whether the publisher declares the signature; it is then not corrected.
        quantised: See `converters.rows.rows_problem`.

    Raises:
        UnservableError: The number of dimensions of an output depends on the data.
        InvalidInputError: The publisher declares the model as batched, but its rows are not independent.
    """
    check_ranks(tried.outputs)
    notes: list[str] = []
    if not stated:
        signature, notes = _corrected(tried, signature)
    if not signature.batched:
        return replace(tried, notes=(*tried.notes, *notes)), signature
    problem = next(
        (
            found
            for inputs, outputs in zip(tried.inputs, tried.outputs, strict=True)
            if (found := rows_problem(run, inputs, outputs, quantised=quantised)) is not None
        ),
        None,
    )
    if problem is not None and stated:
        raise InvalidInputError(
            f"the signature is batched, but the rows of a request are not independent: {problem}; publish the "
            "model without batched"
        )
    if problem is not None:
        signature = signature.model_copy(update={"batched": False})
        notes.append(
            "Triton will not batch requests for this model, although its first dimensions have the same name: "
            f"{problem}"
        )
    return replace(tried, notes=(*tried.notes, *notes), rows_independent=problem is None), signature


def check_ranks(answers: Sequence[Tensors]) -> None:
    """Reject a model if the number of dimensions of an output differs between answers.

    Raises:
        UnservableError: It differs; the message names the output.
    """
    for name, array in answers[0].items():
        ranks = sorted({answer[name].ndim for answer in answers} | {array.ndim})
        if len(ranks) > 1:
            raise UnservableError(
                f"the number of dimensions of output {name!r} depends on the data "
                f"({' or '.join(map(str, ranks))}), but Triton needs a fixed number; export the model so that it "
                "is always the same"
            )


def learn_outputs(
    run: Run, inspection: Inspection, given: tuple[Tensors, ...], options: SamplingOptions
) -> tuple[TrialRun, Signature]:
    """Infer the outputs of a model whose file declares only its inputs.

    Raises:
        UnservableError: The number of dimensions of an output depends on the data.
        ConversionFailedError: The model accepts no inputs.
    """
    specs = inspection.inputs
    assert specs is not None  # checked by the caller
    constraints = Constraints.read(inspection.attributes, ())
    tried = try_samples(run, specs, given, options, batched=False, constraints=constraints)
    check_ranks((*tried.outputs, *_other_branches(run, tried.inputs[0])))
    if tried.guess is None:
        return tried, Signature(inputs=specs, outputs=specs_from_samples(tried.outputs))
    signature = learn_signature(run, specs, options, tried.guess, batched=None, constraints=constraints)
    note = "the file does not declare the shapes of all outputs; they were inferred by running the model"
    if signature.batched:
        inputs = generate_inputs(specs, options, tried.guess, batched=True, constraints=constraints)
        tried = try_samples(run, specs, inputs, options, batched=True, guess=tried.guess)
    return replace(tried, notes=(note,), rows_independent=signature.batched or None), signature


def _other_branches(run: Run, inputs: Tensors) -> list[dict[str, Array]]:
    """Return the answers to negated inputs and to zeros, for which a model may take another branch."""
    answers = []
    for factor in (-1, 0):
        changed = {
            name: np.asarray(array * factor, dtype=array.dtype) if array.dtype.kind == "f" else array
            for name, array in inputs.items()
        }
        try:
            answers.append(run(changed))
        except RunError:
            continue  # rejected inputs show nothing
    return answers


def _corrected(tried: TrialRun, signature: Signature) -> tuple[Signature, list[str]]:
    """Return the signature with the output shapes that the model returned, and a note for each change."""
    outputs, notes = [], []
    for spec in signature.outputs:
        arrays = [answer[spec.name] for answer in tried.outputs if spec.name in answer]
        if not arrays or all(spec.accepts(array.shape) for array in arrays):
            outputs.append(spec)
            continue
        shape = _true_shape(spec, arrays)
        given = next(array for array in arrays if not spec.accepts(array.shape))
        outputs.append(spec.model_copy(update={"shape": shape}))
        notes.append(
            f"the file declares the output {spec}, but the model returns {DataType.of(given)}{list(given.shape)}; "
            f"the signature uses {outputs[-1]}"
        )
    batched = signature.batched and all(spec.shape[:1] == (DYNAMIC,) for spec in outputs)
    return Signature(inputs=signature.inputs, outputs=tuple(outputs), batched=batched), notes


def _true_shape(spec: TensorSpec, arrays: Sequence[Array]) -> tuple[int, ...]:
    if len(spec.shape) != arrays[0].ndim:
        return (DYNAMIC,) * arrays[0].ndim
    sizes = zip(spec.shape, *(array.shape for array in arrays), strict=True)
    return tuple(said if set(have) <= {said} else DYNAMIC for said, *have in sizes)


def fitting(tried: TrialRun) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """Return the golden samples that are small enough to keep, and a note if some are not."""
    kept: list[Sample] = []
    total, most = 0, 0
    for inputs, outputs in zip(tried.inputs, tried.outputs, strict=True):
        size = sum(_bytes(array) for array in (*inputs.values(), *outputs.values()))
        most = max(most, size)
        if total + size <= MAX_GOLDEN_BYTES:
            total += size
            kept.append(Sample(inputs, outputs))
    if len(kept) == len(tried.inputs):
        return tuple(kept), ()
    limit = f"the limit is {MAX_GOLDEN_BYTES // 1024**2} MiB, and one sample has up to {most / 1024**2:.0f} MiB"
    if kept:
        return tuple(kept), (f"only {len(kept)} of {len(tried.inputs)} golden samples are kept: {limit}",)
    return (), (f"no golden samples: {limit}; give --samples with smaller inputs",)


def smaller(
    run: Run, tried: TrialRun, specs: tuple[TensorSpec, ...], options: SamplingOptions, limits: Constraints
) -> TrialRun:
    """Run the model on one generated sample of one row if the first generated sample is too large to keep."""
    first = sum(_bytes(array) for array in (*tried.inputs[0].values(), *tried.outputs[0].values()))
    if tried.guess is None or tried.guess.one_row or first <= MAX_GOLDEN_BYTES:
        return tried
    guess = replace(tried.guess, one_row=True)
    one = options.model_copy(update={"sample_count": 1})
    inputs = generate_inputs(specs, one, guess, batched=False, constraints=limits)
    try:
        return replace(try_samples(run, specs, inputs, one, batched=False), guess=guess, notes=tried.notes)
    except ConversionFailedError:
        return tried


def _bytes(array: Array) -> int:
    if array.dtype.kind != "O":
        return array.nbytes
    return sum(len(element) + 4 for element in array.reshape(-1))
