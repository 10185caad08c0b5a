"""Versions and their publication."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from controlplane.domain.conditions import Condition
from controlplane.domain.manifest import FilePath, Format, Manifest, Origin
from controlplane.domain.model import VersionEntry
from controlplane.domain.names import VERSION_MAX
from controlplane.domain.portability import TargetReport
from controlplane.domain.recorded_samples import SampleRecord
from controlplane.domain.report import VersionReport
from controlplane.domain.signature import Signature
from controlplane.domain.texts import Labels, Reason
from controlplane.domain.tolerance import Tolerance
from controlplane.registry.footprints import FootprintKey, MeasuredFootprint

Batched = Annotated[
    bool | None,
    Field(
        description="Whether the first dimension of every tensor is the batch, if no signature is given; "
        "null: from the file, and false for a signature that is derived from samples."
    ),
]
TargetName = Annotated[str, StringConstraints(min_length=1, max_length=256)]
AliasName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MemberName = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class VersionPage(BaseModel):
    """A page of versions of a model, newest first."""

    items: list[VersionEntry] = Field(description="The versions.")
    next_cursor: str | None = Field(description="Pass it as `cursor` for the next page; null on the last page.")


class VersionDetail(BaseModel):
    """A version with its manifest."""

    model: str = Field(description="The model's name.")
    entry: VersionEntry = Field(description="The version's entry in the model.")
    manifest: Manifest = Field(description="The manifest, fixed when the version was published.")
    aliases: list[str] = Field(description="The aliases that point to it.")
    recorded_samples: list[SampleRecord] = Field(
        description="Golden samples that were recorded after the publication, from the answers of a deployed version."
    )
    conditions: list[Condition] = Field(
        description="Intact: no blob of the version is known to be damaged or missing in the store."
    )


class VersionFootprint(BaseModel):
    """The measured memory of a version on one device, for one way of running it."""

    backend: str = Field(description="Triton's backend.")
    kind: Literal["cpu", "gpu"] = Field(description="The kind of device.")
    max_batch_size: int = Field(description="The maximum batch size in its configuration.")
    instances: int = Field(description="Instances on each device.")
    resident_bytes: int = Field(description="Memory after the load and the first responses.")
    load_peak_bytes: int = Field(description="Peak memory during the load.")
    inference_peak_bytes: int = Field(description="Peak memory during inference; 0: not measured.")
    left_bytes: int | None = Field(
        description="Maximum memory that remained in the server after its unload; null: unknown, because "
        "other models were active."
    )
    estimate_bytes: int = Field(description="The estimate before the measurement.")
    load_seconds: float = Field(description="Duration of the load.")
    by: Literal["processes", "device", "refusal"] = Field(
        description="How it was measured: from its own processes, from the difference on the device, or "
        "from Triton running out of memory."
    )
    at: datetime = Field(description="When one of the figures last increased (UTC).")

    @classmethod
    def of(cls, key: FootprintKey, measured: MeasuredFootprint) -> Self:
        """Describe a measurement."""
        return cls.model_validate(
            {
                "backend": key.backend,
                "kind": key.kind,
                "max_batch_size": key.max_batch_size,
                "instances": key.instances,
                "resident_bytes": measured.bytes,
                "load_peak_bytes": measured.peak_bytes,
                **{
                    name: getattr(measured, name)
                    for name in ("inference_peak_bytes", "left_bytes", "estimate_bytes", "load_seconds", "by", "at")
                },
            }
        )


class FootprintList(BaseModel):
    """The measured memory of a version."""

    items: list[VersionFootprint] = Field(description="One footprint for each way that it was run.")


class PublishRequest(BaseModel):
    """Publish an upload as a version."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "upload_id": "b41cc3a0f9d24e86b7d3",
                    "labels": {"git": "1a2b3c4"},
                    "metrics": {"accuracy": 0.93},
                    "aliases": ["staging"],
                    "reason": "nightly training",
                }
            ]
        },
    )

    upload_id: str = Field(max_length=64, description="The upload with the files.")
    number: int | None = Field(
        default=None,
        ge=1,
        le=VERSION_MAX,
        description="Number of the version; null: the model's next number. A higher number leaves a gap; a lower one "
        "is refused, unless its version has the same content.",
    )
    format: Format | None = Field(default=None, description="Format of the model; null: detected.")
    signature: Signature | None = Field(
        default=None,
        description="Inputs and outputs; required if the file does not contain them (TorchScript, PyTorch).",
    )
    batched: Batched = None
    samples: FilePath | None = Field(
        default=None,
        description="A file of the upload (.npz, one array for each input) with sample inputs; it does "
        "not become part of the version. Null: sample inputs are generated.",
    )
    sample_count: int = Field(default=3, ge=1, le=64, description="Number of samples to generate.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of the generated samples.")
    golden: bool = Field(
        default=True,
        description="Run the model once and record its outputs as golden samples, which prove a deployment.",
    )
    tolerances: dict[str, Tolerance] = Field(
        default_factory=dict,
        description="Tolerance by output: how far Triton's outputs can differ from the recorded ones.",
    )
    labels: Labels = Field(default_factory=dict, description="Labels of the version.")
    metrics: Annotated[dict[str, Annotated[float, Field(allow_inf_nan=False)]], Field(max_length=256)] = Field(
        default_factory=dict, description="Metrics of the version."
    )
    aliases: list[AliasName] = Field(
        default_factory=list, max_length=16, description="Aliases to point to the version, in the same commit."
    )
    reason: Reason = Field(default="", description="Reason; recorded in the history.")
    trust: bool = Field(
        default=False, description="Read files that can run code (pickles). Use only with files you trust."
    )
    depends_on: tuple[MemberName, ...] = Field(
        default=(),
        max_length=64,
        description="Models that a Python model calls; the parameter `depends_on` in config.pbtxt names them as well.",
    )
    force: bool = Field(
        default=False,
        description="Publish a new version even if nothing differs from the newest one: files, "
        "signature, labels, metrics, tolerances, given samples, origin.",
    )
    origin: Origin | None = Field(
        default=None, description="Where the files come from, if not from the publisher; kept in the lineage."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_two_answers(self.signature, self.batched)
        return self


class ValidationRequest(BaseModel):
    """Validate an upload or a published version, as a publication would, without publishing it."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"upload_id": "b41cc3a0f9d24e86b7d3"}, {"reference": "resnet:1"}]},
    )

    upload_id: str | None = Field(default=None, max_length=64, description="The upload with the files.")
    reference: str | None = Field(
        default=None, max_length=256, description="A version instead of an upload: name:7, name@alias or name."
    )
    format: Format | None = Field(default=None, description="Format of the model; null: detected.")
    signature: Signature | None = Field(
        default=None, description="Inputs and outputs, if the file does not contain them."
    )
    batched: Batched = None
    samples: FilePath | None = Field(default=None, description="A file of the upload (.npz) with sample inputs.")
    sample_count: int = Field(default=1, ge=1, le=64, description="Number of samples to generate.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of the generated samples.")
    trust: bool = Field(
        default=False, description="Read files that can run code (pickles). Use only with files you trust."
    )
    targets: tuple[TargetName, ...] = Field(
        default=(),
        max_length=64,
        description="Targets on which the version must load: `embedded`, the release of an image such as `26.08`, or a "
        "server. Empty: all known targets are compared, and none is required.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_two_answers(self.signature, self.batched)
        return self


def _refuse_two_answers(signature: Signature | None, batched: bool | None) -> None:
    if signature is not None and batched not in {None, signature.batched}:
        raise ValueError("batched contradicts signature.batched; set it only in the signature")


class PortabilityList(BaseModel):
    """Whether a version loads on each target."""

    items: list[TargetReport] = Field(
        description="The servers, an embedded server, and the known images of NVIDIA, newest first."
    )


class ReportPage(BaseModel):
    """A page of reports, newest first."""

    items: list[VersionReport] = Field(description="The reports.")
    next_cursor: str | None = Field(description="Pass it as `cursor` for the next page; null on the last page.")
