"""A conversion from end to end: inspect, load, run the original, convert, inspect, compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from controlplane.domain.arrays import Array
from controlplane.domain.manifest import Format
from controlplane.domain.samples import Sample, Tensors
from controlplane.domain.signature import DYNAMIC, Signature, TensorSpec
from controlplane.domain.validation import invalid_field
from controlplane.errors import ConversionFailedError, InvalidArtifactError, InvalidInputError
from converters.base import ConversionRequest, Progress, SourceModel
from converters.determinism import differing_output
from converters.environment import environment
from converters.inspect import inspect_artifact
from converters.jobs import ConversionResult, ConvertJob, Inspection
from converters.options import ConversionOptions
from converters.parity import check_parity, tolerances_for
from converters.registry import find_converter
from converters.rows import rows_problem
from converters.runtimes import Run, TorchScriptRuntime, open_runtime
from converters.sampling import Guess, generate_inputs, guesses
from converters.signature_inference import TrialRun, learn_signature, specs_from_samples, try_samples
from converters.source_models import open_source_model


def convert(job: ConvertJob, progress: Progress) -> ConversionResult:
    """Convert an artifact, and check that the result computes what the original does.

    Raises:
        ControlPlaneError: The artifact is bad, the pair of formats is unsupported, or the conversion or parity fails.
    """
    options = job.options
    progress("inspect", "reading the artifact")
    inspection = inspect_artifact(job.source, format=job.format, signature=None, trust=options.trust)
    converter = find_converter(inspection.format, options.target)
    main = (job.source if job.source.is_dir() else job.source.parent) / inspection.main_file

    progress("load", f"loading the original model ({inspection.format.value})")
    given = tuple(sample.inputs for sample in job.samples)
    stated = _stated_inputs(job, given)
    original = open_source_model(main, inspection.format, job.signature or inspection.signature, stated or (), options)
    specs = _dynamic(stated or original.inputs, options)

    progress("original", "running the original model")
    batched = _said_batched(job, inspection, original)
    asked = given or original.suggest_inputs(specs, options)
    tried = try_samples(original.run, specs, asked, options, batched=bool(batched))
    if (odd := differing_output(original.run, tried.inputs[0])) is not None:
        raise ConversionFailedError(
            f"the original model answers the same input differently in two runs (output {odd!r}), so the result "
            "cannot be compared with it: it is random or has state. Make the state an input and an output, or "
            "convert a submodule"
        )
    learnt = _signature(original, specs, tried, options, batched)
    wanted = _named(learnt, job, options)
    if tried.guess is not None and learnt.batched and not batched:
        # Running the model showed that it batches; samples of several batch sizes show whether the result does too.
        inputs = generate_inputs(specs, options, tried.guess, batched=True)
        tried = try_samples(original.run, specs, inputs, options, batched=True, guess=tried.guess)

    job.output_dir.mkdir(parents=True, exist_ok=True)
    if any(job.output_dir.iterdir()):
        raise InvalidInputError(f"the output folder {job.output_dir} is not empty")
    output = job.output_dir / str(options.target.file_name)
    request = ConversionRequest(wanted, _examples(tried, wanted), options, output, progress)
    warnings = converter.convert(original, request)

    progress("check", "reading the result")
    facts, signature = _read_result(output, options.target, wanted)
    if batched is None and signature.batched:
        warnings = (
            *warnings,
            "every row of a batch got the same answer as when it was sent alone, so the signature is batched",
        )
    progress("parity", f"comparing with the original model on {len(tried.inputs)} samples")
    golden = _golden(tried, wanted, signature)
    tolerances = tolerances_for([sample.outputs for sample in golden], options.precision, options.tolerances)
    runtime = open_runtime(output, options.target, signature)
    if isinstance(runtime, TorchScriptRuntime):
        from converters.torchscript_rules import forward_types, refusal

        facts.attributes.update(forward_types(runtime))
        if (reason := refusal(runtime, signature)) is not None:
            raise ConversionFailedError(f"Triton cannot serve the result: {reason}")
    generated = not given
    parity = check_parity(runtime.run, golden, tolerances, generated=generated, seed=options.seed)
    signature, independent, notes = _settled_rows(runtime.run, signature, golden, facts, options)
    warnings = (*warnings, *notes)
    return ConversionResult(
        output_dir=job.output_dir,
        format=options.target,
        signature=signature,
        attributes=facts.attributes,
        samples=golden,
        tolerances=tolerances,
        parity=parity,
        parameters=options.model_dump(mode="json", exclude_defaults=True),
        converter=converter.name,
        converter_version=converter.version,
        environment=environment(),
        rows_independent=independent,
        warnings=warnings,
    )


def _settled_rows(
    run: Run, signature: Signature, golden: tuple[Sample, ...], facts: "_Facts", options: ConversionOptions
) -> tuple[Signature, bool | None, tuple[str, ...]]:
    """Check whether the rows of the result are independent, and declare it as batched only if they are.

    Raises:
        ConversionFailedError: The rows are not independent, and ``options.batched`` is true.
    """
    if not signature.batched:
        return signature, None, ()
    quantised = options.precision == "int8" or bool(facts.attributes.get("dynamic_quantisation"))
    for sample in golden:
        problem = rows_problem(run, sample.inputs, run(sample.inputs), quantised=quantised)
        if problem is not None and options.batched:
            raise ConversionFailedError(
                f"the model cannot be batched, because the rows of a request are not independent: {problem}"
            )
        if problem is not None:
            note = (
                "Triton will not batch requests for this model, although its original is declared as batched: "
                f"{problem}"
            )
            return signature.model_copy(update={"batched": False}), False, (note,)
    return signature, True, ()


def _stated_inputs(job: ConvertJob, given: Sequence[Tensors]) -> tuple[TensorSpec, ...] | None:
    """Return the inputs that the caller describes by signature, options or samples."""
    if job.signature is not None:
        return job.signature.inputs
    if job.options.inputs is not None:
        return job.options.inputs
    return specs_from_samples(given) if given else None


def _dynamic(specs: tuple[TensorSpec, ...] | None, options: ConversionOptions) -> tuple[TensorSpec, ...]:
    if specs is None:
        raise InvalidInputError(
            "the artifact does not declare its inputs; give a signature, the inputs (name, type, shape), or samples"
        )
    axes = dict(options.dynamic_axes or {})
    result = []
    for spec in specs:
        shape = list(spec.shape)
        for axis in axes.pop(spec.name, []):
            if not -len(shape) <= axis < len(shape):
                raise InvalidInputError(f"dynamic_axes names axis {axis} of {spec}, which does not exist")
            shape[axis] = DYNAMIC
        result.append(spec.model_copy(update={"shape": tuple(shape)}))
    if axes:
        raise InvalidInputError(f"dynamic_axes names {sorted(axes)[0]!r}, but the inputs are {[s.name for s in specs]}")
    return tuple(result)


def _said_batched(job: ConvertJob, inspection: Inspection, original: SourceModel) -> bool | None:
    if job.options.batched is not None:
        return job.options.batched
    for signature in (job.signature, inspection.signature):
        if signature is not None:
            return signature.batched
    batched: bool | None = getattr(original, "batched", None)
    return batched


def _signature(
    original: SourceModel,
    specs: tuple[TensorSpec, ...],
    tried: TrialRun,
    options: ConversionOptions,
    batched: bool | None,
) -> Signature:
    """Return the signature of the original, from its file or inferred by running it."""
    if original.signature is not None:
        outputs = original.signature.outputs
        return _checked(specs, outputs, bool(batched))
    guess = tried.guess or _working_guess(original.run, specs, options)
    if guess is not None:
        return learn_signature(original.run, specs, options, guess, batched=batched)
    # The model accepts only the given samples: the dimensions that differ between them are dynamic, and the batch is
    # dynamic if the model is declared as batched.
    outputs = specs_from_samples(tried.outputs)
    if batched:
        outputs = tuple(s.model_copy(update={"shape": (DYNAMIC, *s.shape[1:])}) for s in outputs)
    return _checked(specs, outputs, bool(batched))


def _checked(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], batched: bool) -> Signature:
    try:
        return Signature(inputs=inputs, outputs=outputs, batched=batched)
    except ValidationError as error:
        raise InvalidInputError(f"the signature is not valid: {invalid_field(error)}") from error


def _working_guess(run: Run, specs: tuple[TensorSpec, ...], options: ConversionOptions) -> Guess | None:
    for guess in guesses(specs, options):
        try:
            try_samples(run, specs, (), options.model_copy(update={"dynamic_size": guess.dynamic_size}), batched=False)
        except (ConversionFailedError, InvalidInputError):
            continue
        return guess
    return None


def _named(learnt: Signature, job: ConvertJob, options: ConversionOptions) -> Signature:
    """Give the outputs their requested names; for TorchScript, in the form that Triton can address."""
    names = [spec.name for spec in learnt.outputs]
    wanted = options.output_names or ([spec.name for spec in job.signature.outputs] if job.signature else None)
    if wanted is not None:
        if len(wanted) != len(names):
            raise InvalidInputError(
                f"{len(wanted)} output names were given, but the model has {len(names)} outputs: {names}"
            )
        names = list(wanted)
    if options.target is Format.TORCHSCRIPT:
        names = [triton_name(name, index) for index, name in enumerate(names)]
    elif wanted is None:
        names = [name.replace("OUTPUT__", "output_") if name.startswith("OUTPUT__") else name for name in names]
        names = ["output"] if names == ["output_0"] else names
    outputs = tuple(spec.model_copy(update={"name": name}) for spec, name in zip(learnt.outputs, names, strict=True))
    return _checked(learnt.inputs, outputs, learnt.batched)


def triton_name(name: str, index: int) -> str:
    """Return an output's name in the form ``NAME__index``, by which Triton's PyTorch backend finds it."""
    stem, mark, number = name.rpartition("__")
    return name if mark and stem and number == str(index) else f"{name}__{index}"


def _examples(tried: TrialRun, signature: Signature) -> tuple[Tensors, ...]:
    """Put a sample without dynamic dimensions of size 1 first, because torch.export treats 1 as a constant."""

    def ones(inputs: Tensors) -> int:
        return sum(
            size == DYNAMIC and have < 2
            for spec in signature.inputs
            for size, have in zip(spec.shape, inputs[spec.name].shape, strict=True)
        )

    return tuple(sorted(tried.inputs, key=ones))


@dataclass(frozen=True, slots=True)
class _Facts:
    attributes: dict[str, Any]


def _read_result(output: Path, target: Format, wanted: Signature) -> tuple[_Facts, Signature]:
    """Inspect the converted file; the signature that it declares takes precedence, completed from ``wanted``."""
    try:
        inspection = inspect_artifact(output.parent, format=target)
    except InvalidArtifactError as error:
        raise ConversionFailedError(f"the converter wrote an unusable model: {error.message}") from error
    if target is Format.TORCHSCRIPT:
        arguments = list(TorchScriptRuntime(output, None).arguments)
        names = [spec.name for spec in wanted.inputs]
        if set(names) <= set(arguments):
            return _Facts(inspection.attributes), wanted
        inputs = tuple(spec.model_copy(update={"name": f"INPUT__{index}"}) for index, spec in enumerate(wanted.inputs))
        return _Facts(inspection.attributes), wanted.model_copy(update={"inputs": inputs})
    read = inspection.signature or wanted
    inputs = tuple(_merged(spec, wanted.inputs) for spec in read.inputs)
    outputs = tuple(_merged(spec, wanted.outputs) for spec in read.outputs)
    if [spec.name for spec in outputs] != [spec.name for spec in wanted.outputs]:
        raise ConversionFailedError(
            f"the converted model has the outputs {[s.name for s in outputs]}, but "
            f"{[s.name for s in wanted.outputs]} were requested"
        )
    if wanted.batched and any(spec.shape[:1] != (DYNAMIC,) for spec in (*inputs, *outputs)):
        raise ConversionFailedError(
            "the converter fixed the batch dimension; convert with batched false, or use method script"
        )
    return _Facts(inspection.attributes), _checked(inputs, outputs, wanted.batched)


def _merged(read: TensorSpec, wanted: Sequence[TensorSpec]) -> TensorSpec:
    """Merge two specs of one tensor, because the file may leave sizes open that running the model showed."""
    same = next((spec for spec in wanted if spec.name == read.name and len(spec.shape) == len(read.shape)), None)
    if same is None:
        return read
    shape = tuple(have if have != DYNAMIC else know for have, know in zip(read.shape, same.shape, strict=True))
    return read.model_copy(update={"shape": shape})


def _golden(tried: TrialRun, wanted: Signature, final: Signature) -> tuple[Sample, ...]:
    """Return the samples with the original's outputs, under the converted model's names."""
    kept = {spec.name for spec in final.inputs}
    renamed = dict(zip([spec.name for spec in wanted.inputs], [spec.name for spec in final.inputs], strict=False))
    samples = []
    for inputs, outputs in zip(tried.inputs, tried.outputs, strict=True):
        if kept <= set(inputs):
            asked: dict[str, Array] = {spec.name: inputs[spec.name] for spec in final.inputs}
        else:
            asked = {renamed[name]: array for name, array in inputs.items()}
        names = [spec.name for spec in final.outputs]
        samples.append(Sample(asked, dict(zip(names, outputs.values(), strict=True))))
    return tuple(samples)
