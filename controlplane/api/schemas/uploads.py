"""Uploads."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.manifest import FileEntry
from controlplane.services.uploads.types import PresignedBlob, UploadFile

_SHA = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


class UploadRequest(BaseModel):
    """The files to be uploaded."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"files": [{"path": "model.onnx", "size_bytes": 4, "sha256": _SHA}]}]},
    )

    files: Annotated[list[FileEntry], Field(min_length=1, max_length=10_000)] = Field(description="The files.")


class PresignRequest(BaseModel):
    """Request URLs that write directly to the bucket."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"expires_seconds": 3600}]})

    expires_seconds: int = Field(default=3600, ge=60, le=7 * 86_400, description="Validity of the URLs.")


class PresignedBlobs(BaseModel):
    """The URLs for the missing blobs."""

    items: list[PresignedBlob] = Field(description="The missing blobs, each with its URLs.")


class CompleteRequest(BaseModel):
    """Report that all parts of a blob were sent directly."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"multipart_id": "2~n6xq…"}]})

    multipart_id: str = Field(max_length=2048, description="The identifier from the presign response.")


class ReceivedBlob(UploadFile):
    """The received part of a blob."""
