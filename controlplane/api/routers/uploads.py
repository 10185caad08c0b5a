"""Uploads: announce files, and send the missing ones through the API or directly to the bucket."""

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Header, Path, Request, Response
from starlette.requests import ClientDisconnect

from controlplane.api.answers import json_answer
from controlplane.api.dependencies import IDEMPOTENT, Actor, App
from controlplane.api.problems import responses
from controlplane.api.schemas.uploads import CompleteRequest, PresignedBlobs, PresignRequest, UploadRequest
from controlplane.services.uploads.types import Upload, UploadFile

router = APIRouter(prefix="/uploads", tags=["uploads"])

UploadId = Annotated[str, Path(description="The upload's identifier.")]
Digest = Annotated[str, Path(description="SHA-256 of the blob, in hexadecimal.", pattern="^[0-9a-f]{64}$")]


async def _body(request: Request) -> AsyncIterator[bytes]:
    """Yield the body; it ends early if the client disconnects, and the received bytes are kept."""
    with suppress(ClientDisconnect):
        async for chunk in request.stream():
            yield chunk


@router.post(
    "",
    dependencies=[IDEMPOTENT],
    operation_id="createUpload",
    status_code=201,
    response_model=Upload,
    responses=responses(413),
)
async def create_upload(services: App, body: UploadRequest, actor: Actor) -> Response:
    """Announce files. The response lists the missing contents; the client sends only those."""
    upload = await services.uploads.create(body.files, actor=actor)
    return json_answer(upload, 201, {"Location": f"/v1/uploads/{upload.id}"})


@router.get("/{upload_id}", operation_id="getUpload", response_model=Upload, responses=responses())
async def get_upload(services: App, upload_id: UploadId) -> Upload:
    """Return an upload and which of its files are still missing."""
    return await services.uploads.get(upload_id)


@router.delete("/{upload_id}", operation_id="deleteUpload", status_code=204, responses=responses(409))
async def delete_upload(services: App, upload_id: UploadId) -> None:
    """Delete an upload with its bytes. Publishing does this automatically."""
    await services.uploads.delete(upload_id)


@router.put(
    "/{upload_id}/blobs/{sha256}",
    operation_id="putBlob",
    response_model=UploadFile,
    responses=responses(409, 507),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put_blob(
    services: App,
    upload_id: UploadId,
    sha256: Digest,
    request: Request,
    upload_offset: Annotated[
        int | None,
        Header(ge=0, le=2**53, description="Offset to resume from (`received_bytes`); default: the start."),
    ] = None,
) -> Response:
    """Send a blob's bytes, or the rest of them after an interruption.

    Bytes received before an interruption are kept. The digest is checked when all bytes have been received.
    """
    blob = await services.uploads.receive(upload_id, sha256, _body(request), offset=upload_offset)
    return json_answer(blob, headers={"Upload-Offset": str(blob.received_bytes)})


@router.head("/{upload_id}/blobs/{sha256}", operation_id="headBlob", responses=responses())
async def head_blob(services: App, upload_id: UploadId, sha256: Digest) -> Response:
    """Return in `Upload-Offset` how many bytes of a blob have been received."""
    blob = await services.uploads.blob(upload_id, sha256)
    return Response(
        headers={
            "Upload-Offset": str(blob.received_bytes),
            "Upload-Length": str(blob.size_bytes),
            "Upload-State": blob.state.value,
            "Cache-Control": "no-store",
        }
    )


@router.post(
    "/{upload_id}/presigned",
    dependencies=[IDEMPOTENT],
    operation_id="presignUpload",
    response_model=PresignedBlobs,
    responses=responses(),
)
async def presign(services: App, upload_id: UploadId, body: PresignRequest) -> PresignedBlobs:
    """Return URLs to write the missing blobs directly to the bucket, in parts.

    Then call `…/blobs/{sha256}/complete`. A store in a folder does not support this (422).
    """
    return PresignedBlobs(items=list(await services.uploads.presign(upload_id, expires_seconds=body.expires_seconds)))


@router.post(
    "/{upload_id}/blobs/{sha256}/complete",
    dependencies=[IDEMPOTENT],
    operation_id="completeBlob",
    response_model=UploadFile,
    responses=responses(409),
)
async def complete_blob(services: App, upload_id: UploadId, sha256: Digest, body: CompleteRequest) -> UploadFile:
    """Accept a blob that was written directly, after reading it back and comparing its digest."""
    return await services.uploads.complete(upload_id, sha256, multipart_id=body.multipart_id)
