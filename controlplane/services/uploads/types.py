"""Data types of uploads."""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.manifest import FileEntry, FilePath, Sha256


class BlobState(StrEnum):
    """Whether a file's content has to be sent."""

    PRESENT = "present"
    MISSING = "missing"


class UploadFile(BaseModel):
    """One announced file and how much of it has been received."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    path: FilePath = Field(description="Path inside the artifact.", examples=["model.onnx"])
    sha256: Sha256 = Field(description="SHA-256 of the content, in hexadecimal.")
    size_bytes: int = Field(ge=0, description="Size of the content in bytes.")
    state: BlobState = Field(description="present: nothing to send; missing: send it.")
    received_bytes: int = Field(ge=0, description="Bytes received; a resumed transfer continues from this offset.")


class Upload(BaseModel):
    """An upload and its missing files."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(description="Identifier of the upload.", examples=["b41cc3a0f9d24e86b7d3"])
    actor: str = Field(description="Who announced it.")
    created_at: datetime = Field(description="When it was announced (UTC).")
    files: tuple[UploadFile, ...] = Field(description="The files.")

    @property
    def missing(self) -> tuple[UploadFile, ...]:
        """Return the files whose content has not been received."""
        return tuple(file for file in self.files if file.state is BlobState.MISSING)


class UploadManifest(BaseModel):
    """The document that the spool stores."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    actor: str
    created_at: datetime
    files: tuple[FileEntry, ...]
    stored: frozenset[str]
    """Contents that the store had when the upload was announced, or that were written to it directly and verified."""
    holds: tuple[str, ...] = ()
    """Holds that protect those contents from garbage collection until they are published."""


class PresignedBlob(BaseModel):
    """URLs with which to write one blob directly to the bucket."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sha256: Sha256 = Field(description="The blob.")
    size_bytes: int = Field(description="Its size in bytes.")
    multipart_id: str = Field(description="Send it back when all parts are sent.")
    part_size_bytes: int = Field(description="Size of every part except the last.")
    urls: tuple[str, ...] = Field(description="One URL for each part, in order; each takes a plain HTTP PUT.")
    expires_at: datetime = Field(description="When the URLs expire (UTC).")
