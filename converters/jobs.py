"""Jobs and results of workers: the documents that cross the process boundary.

A job is a JSON document and an ``.npz`` of samples in the worker's folder, and so is its result. Nothing is pickled
between the processes, because the worker reads untrusted files and is therefore not trusted to send objects.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, JsonValue, TypeAdapter

from controlplane.domain.manifest import Format, ParityReport
from controlplane.domain.portability import TargetReport
from controlplane.domain.samples import Sample
from controlplane.domain.signature import Signature, TensorSpec
from controlplane.domain.tolerance import Tolerance
from converters.options import ConversionOptions, SamplingOptions

DEFAULT_TIMEOUT_SECONDS = 900.0
DEFAULT_MEMORY_BYTES = 8 * 1024**3


class _Job(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    source: Path = Field(description="The artifact: a file or a folder.")
    signature: Signature | None = Field(default=None, description="The declared inputs and outputs.")


class InspectJob(_Job):
    """Inspect an artifact in a process that may crash."""

    kind: Literal["inspect"] = "inspect"
    batched: bool | None = Field(
        default=None,
        description="Whether the first dimension is the batch, if no signature is given; null: as in the file.",
    )
    format: Format | None = Field(default=None, description="The declared format; null detects it.")
    trust: bool = Field(default=False, description="Accept artifacts that run code when they are read.")
    code: bool = Field(default=True, description="Accept TorchScript, a program that can read and write files.")


class ConvertJob(_Job):
    """Convert an artifact, compare the result with the original, and return golden samples."""

    kind: Literal["convert"] = "convert"
    format: Format | None = Field(default=None, description="The source's format; null detects it.")
    options: ConversionOptions
    output_dir: Path = Field(description="An empty or missing folder for the converted model.")
    samples: tuple[InstanceOf[Sample], ...] = Field(default=(), exclude=True, description="Inputs for the comparison.")


class RecordJob(_Job):
    """Run a servable artifact on samples and record its answers as golden samples."""

    kind: Literal["record"] = "record"
    batched: bool | None = Field(
        default=None,
        description="Whether the first dimension is the batch, if no signature is given; null: as in the file.",
    )
    format: Format | None = Field(default=None, description="The artifact's format; null detects it.")
    sampling: SamplingOptions = SamplingOptions()
    run: bool = Field(
        default=True,
        description="Whether to run the model; false only loads it and reports whether Triton can serve it.",
    )
    samples: tuple[InstanceOf[Sample], ...] = Field(default=(), exclude=True, description="Inputs to record.")
    code: bool = Field(default=True, description="Accept TorchScript, a program that can read and write files.")


class ValidateJob(_Job):
    """Check an artifact without publishing it."""

    kind: Literal["validate"] = "validate"
    batched: bool | None = Field(
        default=None,
        description="Whether the first dimension is the batch, if no signature is given; null: as in the file.",
    )
    format: Format | None = Field(default=None, description="The declared format; null detects it.")
    sampling: SamplingOptions = SamplingOptions()
    samples: tuple[InstanceOf[Sample], ...] = Field(default=(), exclude=True, description="Inputs to run the model on.")
    trust: bool = Field(default=False, description="Accept artifacts that run code when they are read.")
    code: bool = Field(default=True, description="Accept TorchScript, a program that can read and write files.")


Job = InspectJob | ConvertJob | RecordJob | ValidateJob
JOB: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="kind")])


@dataclass(frozen=True, slots=True)
class WorkerEvent:
    """Progress of a worker.

    Attributes:
        stage: One word for programs: ``start``, ``inspect``, ``load``, ``original``, ``convert``, ``parity``, ….
        message: One sentence for a person.
        fraction: Completed share of the whole job, 0 to 1; None if unknown.
    """

    stage: str
    message: str
    fraction: float | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """Facts about an artifact, read without running any of its code.

    Attributes:
        format: The format, detected from the content.
        signature: Inputs and outputs; None if the file does not declare them (``hints`` gives the reason).
        attributes: Facts as JSON values: opset, IR version, producer, number of weights, names of dynamic dimensions.
        main_file: Path of the model file inside the artifact (for a bare file its name), with ``/``.
        hints: Advice for the publisher, one sentence each.
        inputs: The inputs, if the file declares them but not all outputs.
        unservable: Why Triton cannot serve the artifact with any signature, and what to do; None if no reason is known.
    """

    format: Format
    signature: Signature | None
    attributes: dict[str, JsonValue]
    main_file: str
    hints: tuple[str, ...] = ()
    inputs: tuple[TensorSpec, ...] | None = None
    unservable: str | None = None

    @property
    def unknown_tensors(self) -> str:
        """Why the artifact cannot be served while its inputs and outputs are unknown, and what to give."""
        why = self.hints[0] if self.hints else "give a signature (--input, --out), or --samples to infer it from"
        return f"its inputs and outputs are unknown: {why}"

    def stored_path(self, path: str) -> str:
        """Return the path under which a file of the artifact is stored.

        Triton looks for ``model.onnx`` or ``model.pt``, so the main file of a servable artifact gets that name. Its
        folder stays the same, and so do external-data locations, which ONNX resolves from the model file's folder.
        """
        name = self.format.file_name
        return name if name is not None and path == self.main_file else path


@dataclass(frozen=True, slots=True)
class ConversionResult:
    """A converted model that agrees with its original.

    Attributes:
        output_dir: Folder with ``model.onnx`` (and external data) or ``model.pt``, and nothing else.
        format: The target format.
        signature: Inputs and outputs of the converted model.
        attributes: Facts read from the converted file.
        samples: Golden samples: the inputs, and the original's outputs under the converted model's names.
        tolerances: Tolerance by output in the parity check; the manifest's ``golden.tolerances``.
        parity: Comparison of the converted model with the original.
        parameters: The options, for the lineage.
        converter: The converter's name.
        converter_version: The converter's version.
        environment: Versions of the libraries and tools used.
        rows_independent: See `RecordResult`.
        warnings: Warnings for the publisher.
        log: Output of the worker, truncated.
        seconds: Wall time of the whole job.
        peak_memory_bytes: Largest observed resident size of the worker.
    """

    output_dir: Path
    format: Format
    signature: Signature
    attributes: dict[str, JsonValue]
    samples: tuple[Sample, ...]
    tolerances: dict[str, Tolerance]
    parity: ParityReport
    parameters: dict[str, JsonValue]
    converter: str
    converter_version: str
    environment: dict[str, str]
    rows_independent: bool | None = None
    warnings: tuple[str, ...] = ()
    log: str = ""
    seconds: float = 0.0
    peak_memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RecordResult:
    """Golden samples of a servable artifact.

    Attributes:
        inspection: Facts about the artifact.
        signature: Inputs and outputs; inferred by running the model if the file does not declare them.
        samples: Golden samples; empty if none could be recorded (``warnings`` gives the reason).
        tolerances: Tolerance by output, for the manifest.
        generated: Whether the inputs were generated.
        unservable: Why Triton cannot serve the artifact, and what to do; None if it can.
        rows_independent: Whether each row of a request was shown to get the same answer as when it is sent alone; None
            if that was not compared.
        warnings: Why there are no samples, and other warnings for the publisher.
        environment: Versions of the libraries and tools used.
        log: Output of the worker, truncated.
        seconds: Wall time of the whole job.
        peak_memory_bytes: Largest observed resident size of the worker.
    """

    inspection: Inspection
    signature: Signature | None
    samples: tuple[Sample, ...]
    tolerances: dict[str, Tolerance]
    generated: bool
    warnings: tuple[str, ...]
    environment: dict[str, str]
    unservable: str | None = None
    rows_independent: bool | None = None
    log: str = ""
    seconds: float = 0.0
    peak_memory_bytes: int = 0


class ValidationCheck(BaseModel):
    """One check of a validation."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(
        description="Name of the check: configuration, artifact, load, servable, run, signature, deterministic, "
        "portability."
    )
    ok: bool = Field(description="Whether the check passed.")
    message: str = Field(description="The result as one sentence.")
    seconds: float = Field(description="Duration of the check, in seconds.")


class ValidationReport(BaseModel):
    """Whether an artifact can be published and served, and the facts that were read from it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    ok: bool = Field(description="Whether every check passed.")
    checks: tuple[ValidationCheck, ...] = Field(description="The checks, in order; the first failed check is the last.")
    format: Format | None = Field(default=None, description="The detected format.")
    signature: Signature | None = Field(default=None, description="Inputs and outputs, read from the file or inferred.")
    attributes: dict[str, JsonValue] = Field(default_factory=dict, description="Facts read from the file.")
    hints: tuple[str, ...] = Field(default=(), description="Advice for the publisher.")
    environment: dict[str, str] = Field(default_factory=dict, description="Versions of the libraries and tools used.")
    portability: tuple[TargetReport, ...] = Field(
        default=(), description="Whether it loads on each target; empty if the format was not detected."
    )
    log: str = Field(default="", description="Output of the worker, truncated.")


WorkerResult = Inspection | ConversionResult | RecordResult | ValidationReport


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of `converters.working.execute`: a JSON document and the golden samples."""

    document: dict[str, Any]
    samples: tuple[Sample, ...] = field(default=())
