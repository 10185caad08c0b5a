"""Recording of golden samples for artifacts that are served without conversion, and validation of artifacts."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from controlplane.domain.manifest import Format
from controlplane.domain.samples import Sample, Tensors
from controlplane.domain.signature import DYNAMIC, DataType, Signature, TensorSpec
from controlplane.errors import ControlPlaneError, ConversionFailedError, InvalidInputError
from converters.base import Progress
from converters.conversion import triton_name
from converters.determinism import differing_output
from converters.environment import environment
from converters.golden import UnservableError, fitting, learn_outputs, settle, smaller
from converters.inspect import inspect_artifact
from converters.jobs import Inspection, RecordJob, RecordResult, ValidateJob, ValidationCheck, ValidationReport
from converters.parity import tolerances_for
from converters.rows import rows_problem
from converters.runtimes import Runnable, TorchScriptRuntime, check_inputs, open_runtime
from converters.sampling import Constraints
from converters.signature_inference import TrialRun, specs_from_samples, try_samples

T = TypeVar("T")


def record(job: RecordJob, progress: Progress) -> RecordResult:
    """Run a servable artifact on samples and record its own answers as golden samples.

    A model that cannot be recorded (it is random or stateful, or accepts no sample) is not an error: the result then
    contains no samples, and a warning with the reason.

    Raises:
        InvalidArtifactError: The file is damaged, or its runtime cannot load it.
        InvalidInputError: The given samples do not match the signature, or contradict that the model is batched.
        ForbiddenError: The artifact is TorchScript, and the job does not accept it.
    """
    progress("inspect", "reading the artifact")
    inspection = inspect_artifact(
        job.source, format=job.format, signature=job.signature, batched=job.batched, code=job.code
    )
    inspection, renamed = _addressable(inspection)
    progress("load", f"loading the model ({inspection.format.value})")
    signature, unservable = inspection.signature, inspection.unservable
    if unservable is not None:
        return _without_samples(inspection, unservable)
    runtime = open_runtime(_main(job.source, inspection), inspection.format, signature)
    inspection = _with_types(inspection, runtime)
    tried: TrialRun | None = None
    warnings: tuple[str, ...] = ()
    if job.run:
        progress("record", "running the model on samples")
        try:
            tried, signature, warnings = _answers(runtime, inspection, job)
        except UnservableError as error:
            return _without_samples(inspection, str(error))
    samples: tuple[Sample, ...] = ()
    if tried is not None:
        samples, notes = fitting(tried)
        warnings = (*warnings, *notes)
    return RecordResult(
        inspection=inspection,
        signature=signature,
        samples=samples,
        tolerances=tolerances_for([sample.outputs for sample in samples], "fp32", {}) if samples else {},
        generated=tried is not None and tried.guess is not None,
        rows_independent=tried.rows_independent if tried is not None else None,
        unservable=_unservable(runtime, inspection, signature),
        warnings=(*renamed, *warnings, *_training_notes(runtime)),
        environment=environment(),
    )


def _without_samples(inspection: Inspection, unservable: str) -> RecordResult:
    return RecordResult(
        inspection=inspection,
        signature=inspection.signature,
        samples=(),
        tolerances={},
        generated=False,
        warnings=(),
        environment=environment(),
        unservable=unservable,
    )


def validate(job: ValidateJob, progress: Progress) -> ValidationReport:
    """Check an artifact as publishing and deploying it would, without publishing or deploying it."""
    checks: list[ValidationCheck] = []
    inspection: Inspection | None = None
    signature = job.signature
    notes: tuple[str, ...] = ()

    def report() -> ValidationReport:
        return ValidationReport(
            ok=all(check.ok for check in checks),
            checks=tuple(checks),
            format=inspection.format if inspection else None,
            signature=signature,
            attributes=inspection.attributes if inspection else {},
            hints=(*inspection.hints, *notes) if inspection else (),
            environment=environment(),
        )

    def step(name: str, message: str, work: Callable[[], T], told: Callable[[T], str]) -> T | None:
        progress(name, message)
        started = time.monotonic()
        try:
            answer = work()
        except ControlPlaneError as error:
            checks.append(_check(name, error.message, started, ok=False))
            return None
        except UnservableError as error:
            checks.append(_check("servable", str(error), started, ok=False))
            return None
        checks.append(_check(name, told(answer), started, ok=True))
        return answer

    inspection = step(
        "artifact",
        "reading the artifact",
        lambda: inspect_artifact(
            job.source,
            format=job.format,
            signature=job.signature,
            batched=job.batched,
            trust=job.trust,
            code=job.code,
        ),
        lambda found: f"{found.main_file} is {found.format.value}",
    )
    if inspection is None:
        return report()
    found, notes = _addressable(inspection)
    signature = found.signature
    if found.format.backend is None:
        return report()
    if found.unservable is not None:
        checks.append(_check("servable", found.unservable, time.monotonic(), ok=False))
        return report()
    runtime = step(
        "load",
        "loading the model",
        lambda: open_runtime(_main(job.source, found), found.format, signature),
        lambda _: f"{'onnxruntime' if found.format is Format.ONNX else 'torch'} can load the model on the CPU",
    )
    if runtime is None:
        return report()
    inspection = _with_types(inspection, runtime)
    notes += _training_notes(runtime)
    learns = signature is None and (found.inputs is not None or bool(job.samples))
    unservable = _unservable(runtime, found, signature, learns=learns)
    if unservable is not None:
        checks.append(_check("servable", unservable, time.monotonic(), ok=False))
    if signature is None and not learns:
        return report()
    answer = step(
        "run",
        "running the model on samples",
        lambda: _answers_or_reason(runtime, found, job),
        lambda done: (
            done
            if isinstance(done, str)
            else f"the model answers {len(done[0].inputs)} {'generated' if done[0].guess else 'given'} samples"
        ),
    )
    if answer is None or isinstance(answer, str):
        if isinstance(answer, str) and signature is None:
            checks.append(_check("servable", found.unknown_tensors, time.monotonic(), ok=False))
        return report()
    tried, learnt = answer
    notes += tried.notes
    declared, signature = (signature if job.signature else signature and learnt), learnt
    if learns and unservable is None and (unservable := _unservable(runtime, found, signature)) is not None:
        checks.append(_check("servable", unservable, time.monotonic(), ok=False))
    step(
        "signature",
        "comparing the answers with the signature",
        lambda: _match(tried, declared) if declared else None,
        lambda _: (
            "the answers have the names, types and shapes of the signature"
            if declared
            else "the signature was inferred from the answers"
        ),
    )
    step(
        "deterministic",
        "running the same sample twice",
        lambda: _must_repeat(runtime, tried.inputs[0]),
        lambda _: "the model gives the same answer in two runs",
    )
    return report()


def _answers_or_reason(runtime: Runnable, inspection: Inspection, job: ValidateJob) -> tuple[TrialRun, Signature] | str:
    """Return the answers, or why generated inputs give none, which is not a fault of the file."""
    try:
        return _must_answer(runtime, inspection, job)
    except ConversionFailedError as error:
        if job.samples or inspection.format is not Format.ONNX:
            raise
        return f"not run: {error.message}"


def _answers(
    runtime: Runnable, inspection: Inspection, job: RecordJob
) -> tuple[TrialRun | None, Signature | None, tuple[str, ...]]:
    signature, inputs = inspection.signature, tuple(sample.inputs for sample in job.samples)
    learnt: Signature | None = signature
    if signature is not None:
        for number, sample in enumerate(inputs):
            check_inputs(sample, signature, number)
    elif not inputs and inspection.inputs is None:
        if isinstance(runtime, TorchScriptRuntime):
            return None, None, ()  # the message in `unservable` explains this
        return (
            None,
            None,
            ("no golden samples: neither a signature nor samples are given, and the file does not declare its inputs",),
        )
    try:
        tried, learnt = _must_answer(runtime, inspection, job)
        if signature is not None:
            _match(tried, learnt)
        _must_repeat(runtime, tried.inputs[0])
    except ConversionFailedError as error:
        if inputs:
            raise
        return None, signature, (f"no golden samples: {error.message}",)
    except _NotRepeatableError as error:
        return None, learnt, (f"no golden samples: {error.message}",)
    return tried, learnt, tried.notes


def _must_answer(runtime: Runnable, inspection: Inspection, job: RecordJob | ValidateJob) -> tuple[TrialRun, Signature]:
    signature, inputs = inspection.signature, tuple(sample.inputs for sample in job.samples)
    if signature is None and inspection.inputs is not None:
        return _as_stated(runtime, job, *learn_outputs(runtime.run, inspection, inputs, job.sampling))
    if signature is None and not inputs:
        raise InvalidInputError("the file does not declare its inputs; give a signature or samples")
    if signature is not None:
        for number, sample in enumerate(inputs):
            check_inputs(sample, signature, number)
        limits = Constraints.read(inspection.attributes, signature.outputs)
        tried = try_samples(
            runtime.run, signature.inputs, inputs, job.sampling, batched=signature.batched, constraints=limits
        )
        tried = smaller(runtime.run, tried, signature.inputs, job.sampling, limits)
        quantised = bool(inspection.attributes.get("dynamic_quantisation"))
        settled = settle(runtime.run, tried, signature, stated=job.signature is not None, quantised=quantised)
        return _as_stated(runtime, job, *settled)
    tried = try_samples(runtime.run, (), inputs, job.sampling, batched=False)
    return _as_stated(runtime, job, *_learnt(runtime, tried))


def _as_stated(
    runtime: Runnable, job: RecordJob | ValidateJob, tried: TrialRun, signature: Signature
) -> tuple[TrialRun, Signature]:
    """Return the signature with the publisher's statement about the batch applied.

    Raises:
        InvalidInputError: The model is declared as batched, but the answers to the samples contradict it.
    """
    if job.batched is None or job.batched is signature.batched:
        return tried, signature
    if not job.batched:
        return tried, signature.model_copy(update={"batched": False})
    for number, (sample, answer) in enumerate(zip(tried.inputs, tried.outputs, strict=True)):
        if (problem := rows_problem(runtime.run, sample, answer)) is not None:
            raise InvalidInputError(f"the model is declared as batched, but sample {number} contradicts it: {problem}")
    opened = Signature(inputs=_open_batch(signature.inputs), outputs=_open_batch(signature.outputs), batched=True)
    return replace(tried, rows_independent=True), opened


def _open_batch(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(spec.model_copy(update={"shape": (DYNAMIC, *spec.shape[1:])}) for spec in specs)


def _learnt(runtime: Runnable, tried: TrialRun) -> tuple[TrialRun, Signature]:
    """Infer an unbatched signature from given samples: dimensions that differ between them are dynamic."""
    outputs = tried.outputs
    if isinstance(runtime, TorchScriptRuntime):
        outputs = tuple({triton_name(n, i): a for i, (n, a) in enumerate(answer.items())} for answer in outputs)
    signature = Signature(inputs=specs_from_samples(tried.inputs), outputs=specs_from_samples(outputs))
    return TrialRun(tried.inputs, outputs, tried.guess), signature


class _NotRepeatableError(ControlPlaneError):
    """The model answers the same input differently in two runs."""


def _must_repeat(runtime: Runnable, inputs: Tensors) -> None:
    odd = differing_output(runtime.run, inputs)
    if odd is not None:
        raise _NotRepeatableError(
            f"the model answers the same input differently in two runs (output {odd!r}): it is random or has state"
        )


def _match(tried: TrialRun, signature: Signature) -> None:
    """Compare the answers with the signature's outputs.

    Raises:
        ConversionFailedError: They do not match; the message names the output and the difference.
    """
    for number, answer in enumerate(tried.outputs):
        if set(answer) != {spec.name for spec in signature.outputs}:
            raise ConversionFailedError(
                f"the model returns {sorted(answer)}, but the signature has {sorted(s.name for s in signature.outputs)}"
            )
        for spec in signature.outputs:
            array = answer[spec.name]
            dtype = DataType.of(array)
            same = dtype is spec.dtype or (spec.dtype is DataType.BF16 and dtype is DataType.FP32)
            batch = _batch(tried.inputs[number], signature)
            if not same or not spec.accepts(array.shape) or (signature.batched and array.shape[0] != batch):
                raise ConversionFailedError(
                    f"the model returns {spec.name} {dtype}{list(array.shape)} on sample {number}, but the "
                    f"signature requires {spec}{' with a batch of ' + str(batch) if signature.batched else ''}"
                )


def _batch(inputs: Tensors, signature: Signature) -> int:
    first = inputs[signature.inputs[0].name]
    return first.shape[0] if first.ndim and signature.inputs[0].shape[:1] == (DYNAMIC,) else 1


def _addressable(inspection: Inspection) -> tuple[Inspection, tuple[str, ...]]:
    """Give TorchScript outputs the names by which Triton finds them, and return a note about the change."""
    signature = inspection.signature
    if signature is None or inspection.format is not Format.TORCHSCRIPT:
        return inspection, ()
    names = [spec.name for spec in signature.outputs]
    if sorted(name.rpartition("__")[2] for name in names) == sorted(str(index) for index in range(len(names))):
        return inspection, ()
    renamed = [triton_name(name, index) for index, name in enumerate(names)]
    outputs = tuple(s.model_copy(update={"name": n}) for s, n in zip(signature.outputs, renamed, strict=True))
    note = f"the outputs are named {', '.join(renamed)}, because Triton's PyTorch backend finds outputs by position"
    return replace(inspection, signature=signature.model_copy(update={"outputs": outputs})), (note,)


def _unservable(
    runtime: Runnable, inspection: Inspection, signature: Signature | None, *, learns: bool = False
) -> str | None:
    """Return why Triton cannot serve the artifact and what to do; ``learns``: the signature is inferred later."""
    if not isinstance(runtime, TorchScriptRuntime):
        return inspection.unknown_tensors if signature is None and not learns else None
    from converters import torchscript_rules

    return torchscript_rules.module_refusal(runtime) if learns else torchscript_rules.refusal(runtime, signature)


def _with_types(inspection: Inspection, runtime: Runnable) -> Inspection:
    """Add the types that only torch can read from a TorchScript file."""
    if not isinstance(runtime, TorchScriptRuntime):
        return inspection
    from converters.torchscript_rules import forward_types

    return replace(inspection, attributes={**inspection.attributes, **forward_types(runtime)})


def _training_notes(runtime: Runnable) -> tuple[str, ...]:
    if not isinstance(runtime, TorchScriptRuntime):
        return ()
    from converters.torchscript_rules import training_note, training_parts

    parts = training_parts(runtime.module)
    return (training_note(parts),) if parts else ()


def _check(name: str, message: str, started: float, *, ok: bool) -> ValidationCheck:
    return ValidationCheck(name=name, ok=ok, message=message, seconds=round(time.monotonic() - started, 4))


def _main(source: Path, inspection: Inspection) -> Path:
    return (source if source.is_dir() else source.parent) / inspection.main_file
