"""Manifest of a version: its files, signature and lineage. Immutable once published."""

import hashlib
import json
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

from controlplane.domain.names import validate_file_path
from controlplane.domain.pipelines import ENSEMBLE, is_ensemble
from controlplane.domain.signature import Signature
from controlplane.domain.tolerance import OutputComparison, Tolerance

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FilePath = Annotated[str, AfterValidator(validate_file_path)]


class Format(StrEnum):
    """Format of an artifact."""

    ONNX = "onnx"
    TORCHSCRIPT = "torchscript"
    TORCH_EXPORT = "torch-export"
    PYTORCH = "pytorch"
    SKLEARN = "sklearn"
    XGBOOST = "xgboost"
    LIGHTGBM = "lightgbm"
    TRANSFORMERS = "transformers"
    """A model folder of Hugging Face: ``config.json``, weights, a tokenizer."""
    TRITON = "triton"
    """A model directory as Triton reads it: the author's ``config.pbtxt`` and the files of one version."""

    @property
    def backend(self) -> str | None:
        """The Triton backend that runs its model file; None if the format has none, or the configuration names it."""
        return {Format.ONNX: "onnxruntime", Format.TORCHSCRIPT: "pytorch"}.get(self)

    @property
    def runs(self) -> bool:
        """Whether Triton can run it without a conversion."""
        return self is Format.TRITON or self.backend is not None

    @property
    def file_name(self) -> str | None:
        """The file name that Triton's backend looks for in a version folder."""
        return {Format.ONNX: "model.onnx", Format.TORCHSCRIPT: "model.pt"}.get(self)


class FileEntry(BaseModel):
    """One file of an artifact, by its content."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    path: FilePath = Field(description="Path inside the artifact, with '/' as separator.")
    sha256: Sha256 = Field(description="SHA-256 of the content, in hexadecimal.")
    size_bytes: int = Field(ge=0, description="Size of the content in bytes.")


class GoldenSamples(BaseModel):
    """Recorded inputs and outputs of the original model, and the required accuracy."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    file: FileEntry = Field(description="The .npz blob with the samples.")
    count: int = Field(ge=1, description="Number of samples.")
    tolerances: dict[str, Tolerance] = Field(
        default_factory=dict, description="Tolerance by output; other outputs use the default of their type."
    )


TagName = Annotated[str, Field(min_length=1, max_length=250)]
TagValue = Annotated[str, Field(max_length=1024)]


class Origin(BaseModel):
    """The place outside the registry from which a model was published, as its publisher declares it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    uri: str = Field(min_length=1, max_length=2048, description="URI of exactly this model, as mlflow://models:/vad/3.")
    server: str | None = Field(default=None, max_length=2048, description="URL of the server, without credentials.")
    revision: str | None = Field(default=None, max_length=256, description="The commit of a model repository.")
    run: str | None = Field(default=None, max_length=256, description="Identifier of the training run.")
    version: str | None = Field(default=None, max_length=256, description="The version in the other registry.")
    tags: dict[TagName, TagValue] = Field(
        default_factory=dict, max_length=64, description="Tags of the model there, and of its run."
    )


class Lineage(BaseModel):
    """Where a version comes from: another place, another version, or both."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    origin: Origin | None = Field(
        default=None, description="Where the model, or the version from which it was converted, was published from."
    )
    source: str | None = Field(default=None, description="The version from which it was converted, as name:7.")
    converter: str = Field(default="", description="The converter's name.")
    converter_version: str = Field(default="", description="The converter's version.")
    parameters: dict[str, JsonValue] = Field(default_factory=dict, description="The conversion's parameters.")
    environment: dict[str, str] = Field(default_factory=dict, description="Versions of the libraries and tools used.")
    log: FileEntry | None = Field(default=None, description="The conversion's log, as a blob.")


class ParityReport(BaseModel):
    """Comparison of the converted model with the original on the samples."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    samples: int = Field(ge=1, description="Number of samples compared.")
    generated: bool = Field(description="Whether the inputs were generated from the signature rather than given.")
    seed: int | None = Field(default=None, description="The seed with which they were generated.")
    outputs: tuple[OutputComparison, ...] = Field(description="Largest errors of each output over all samples.")


class Manifest(BaseModel):
    """Everything about a version that is fixed when it is published."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = Field(default=1, description="Version of this document's layout.")
    format: Format = Field(description="Format of the model files.")
    files: tuple[FileEntry, ...] = Field(min_length=1, description="The artifact's files.")
    signature: Signature | None = Field(
        default=None, description="Inputs and outputs; null for source formats that only a conversion can read."
    )
    golden: GoldenSamples | None = Field(default=None, description="The golden samples; null without any.")
    unservable: str | None = Field(
        default=None, description="Why Triton cannot serve the version, and how to fix it; null if no reason is known."
    )
    rows_independent: bool | None = Field(
        default=None,
        description="Whether a test showed that each row of a batch gets the same answer as when it is sent alone, so "
        "that Triton can batch requests; null: not tested.",
    )
    config: dict[str, JsonValue] | None = Field(
        default=None,
        description="The author's model configuration (config.pbtxt) of the format triton, in Triton's JSON form; null "
        "for other formats, whose configuration is generated.",
    )
    lineage: Lineage | None = Field(
        default=None, description="Where the version comes from; null for files of the publisher."
    )
    members: tuple[str, ...] = Field(
        default=(),
        description="The models that answer its requests together with it: the steps of an ensemble, and those that a "
        "Python model calls.",
    )
    parity: ParityReport | None = Field(default=None, description="The parity check of a converted version.")
    attributes: dict[str, JsonValue] = Field(
        default_factory=dict, description="Facts read from the file: opset, IR version, producer, number of weights."
    )
    metrics: dict[str, float] = Field(default_factory=dict, description="Metrics given by the publisher (accuracy, …).")
    labels: dict[str, str] = Field(default_factory=dict, description="Labels given by the publisher.")

    @property
    def servable(self) -> bool:
        """Whether Triton can serve it, as far as known."""
        return self.format.runs and self.unservable is None

    @property
    def backend(self) -> str:
        """The Triton backend that runs it, or ``ensemble``; empty if it must be converted first."""
        if is_ensemble(self.config):
            return ENSEMBLE
        if self.config is not None:
            return str(self.config.get("backend", ""))
        return self.format.backend or ""

    @property
    def size_bytes(self) -> int:
        """Total size of the artifact's files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def blobs(self) -> tuple[FileEntry, ...]:
        """All blobs that the version refers to: its files, its samples, its conversion log."""
        extra = [self.golden.file] if self.golden else []
        if self.lineage and self.lineage.log:
            extra.append(self.lineage.log)
        return (*self.files, *extra)

    @property
    def content_digest(self) -> str:
        """Digest of what a proof depends on: the files, the golden samples and how they are compared."""
        content = {
            "format": self.format.value,
            "files": sorted((file.path, file.sha256) for file in self.files),
            "golden": self.golden.model_dump(mode="json", exclude={"file": {"path"}}) if self.golden else None,
            "rows_independent": self.rows_independent,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @model_validator(mode="after")
    def _check(self) -> Self:
        paths = [file.path for file in self.files]
        if len(set(paths)) != len(paths):
            raise ValueError("a file path appears more than once")
        folders = {path[:end] for path in paths for end in _slashes(path)}
        if both := folders.intersection(paths):
            raise ValueError(f"{sorted(both)[0]!r} is both a file and a folder")
        return self


def manifest_document(manifest: Manifest) -> bytes:
    """Return the bytes of a manifest's blob."""
    return manifest.model_dump_json(indent=2).encode()


def _slashes(path: str) -> list[int]:
    return [position for position, character in enumerate(path) if character == "/"]
