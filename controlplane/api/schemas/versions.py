"""Versions and their publication."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from controlplane.api.schemas.models import Labels, Reason
from controlplane.domain.conditions import Condition
from controlplane.domain.manifest import FilePath, Format, Manifest
from controlplane.domain.model import VersionEntry
from controlplane.domain.report import VersionReport
from controlplane.domain.signature import Signature
from controlplane.domain.tolerance import Tolerance
from controlplane.registry.footprints import FootprintKey, MeasuredFootprint

Batched = Annotated[
    bool | None,
    Field(
        description="Whether the first dimension of every tensor is the batch, where no signature is given; null: as "
        "the file says it, and not for what is learnt from samples."
    ),
]
AliasName = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class VersionPage(BaseModel):
    """A page of versions of a model, newest first."""

    items: list[VersionEntry] = Field(description="The versions.")
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page; null on the last one.")


class VersionDetail(BaseModel):
    """A version with its manifest."""

    model: str = Field(description="The model's name.")
    entry: VersionEntry = Field(description="The version as the model lists it.")
    manifest: Manifest = Field(description="Everything that was fixed when it was published.")
    aliases: list[str] = Field(description="The aliases that point to it.")
    conditions: list[Condition] = Field(
        description="Intact: no blob of the version is known to be damaged or missing in the store."
    )


class VersionFootprint(BaseModel):
    """The measured memory of a version on one device, for one way of running it."""

    backend: str = Field(description="Triton's backend.")
    kind: Literal["cpu", "gpu"] = Field(description="The kind of device.")
    max_batch_size: int = Field(description="The largest batch it was configured for.")
    instances: int = Field(description="Instances on a device.")
    resident_bytes: int = Field(description="After the load and the first answers.")
    load_peak_bytes: int = Field(description="The most that was seen during the load.")
    inference_peak_bytes: int = Field(description="The most that was seen while it answered; 0: not measured.")
    left_bytes: int | None = Field(
        description="The most that stayed in the server after its unload; null: not known, as others were at work."
    )
    estimate_bytes: int = Field(description="What had been estimated before.")
    load_seconds: float = Field(description="What the load took.")
    by: Literal["processes", "device", "refusal"] = Field(
        description="How it was measured: its own processes, the device's difference, or that Triton had no memory."
    )
    at: datetime = Field(description="When one of the figures grew last (UTC).")

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

    items: list[VersionFootprint] = Field(description="One for each way it was run.")


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
    format: Format | None = Field(default=None, description="What kind of model it is; null: found out.")
    signature: Signature | None = Field(
        default=None, description="Inputs and outputs; needed where the file does not tell (TorchScript, PyTorch)."
    )
    batched: Batched = None
    samples: FilePath | None = Field(
        default=None,
        description="A file of the upload (.npz, one array for each input) with sample inputs; it is not made part "
        "of the version. Null: sample inputs are generated.",
    )
    sample_count: int = Field(default=3, ge=1, le=64, description="How many samples to generate.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of the generated samples.")
    golden: bool = Field(
        default=True,
        description="Run the model once and record its answers as golden samples, by which a deployment is proved.",
    )
    tolerances: dict[str, Tolerance] = Field(
        default_factory=dict, description="By output, how far Triton's answers may be from the recorded ones."
    )
    labels: Labels = Field(default_factory=dict, description="Labels of the version.")
    metrics: Annotated[dict[str, Annotated[float, Field(allow_inf_nan=False)]], Field(max_length=256)] = Field(
        default_factory=dict, description="Figures of the version."
    )
    aliases: list[AliasName] = Field(
        default_factory=list, max_length=16, description="Aliases that shall point to it, in the same commit."
    )
    reason: Reason = Field(default="", description="Why; kept in the history.")
    trust: bool = Field(default=False, description="Read files that can run code (pickles). Only if you made them.")
    force: bool = Field(
        default=False,
        description="Publish a new version also where nothing differs from the newest one: files, signature, labels, "
        "metrics, tolerances, given samples.",
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
        default=None, max_length=256, description="Instead of an upload, a version: name:7, name@alias or name."
    )
    format: Format | None = Field(default=None, description="What kind of model it is; null: found out.")
    signature: Signature | None = Field(default=None, description="Inputs and outputs, where the file does not tell.")
    batched: Batched = None
    samples: FilePath | None = Field(default=None, description="A file of the upload (.npz) with sample inputs.")
    sample_count: int = Field(default=1, ge=1, le=64, description="How many samples to generate.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of the generated samples.")
    trust: bool = Field(default=False, description="Read files that can run code (pickles). Only if you made them.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_two_answers(self.signature, self.batched)
        return self


def _refuse_two_answers(signature: Signature | None, batched: bool | None) -> None:
    if signature is not None and batched not in {None, signature.batched}:
        raise ValueError("batched contradicts signature.batched; give it in the signature alone")


class ReportPage(BaseModel):
    """A page of reports, newest first."""

    items: list[VersionReport] = Field(description="The reports.")
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page; null on the last one.")
