"""Versions: publish, inspect, download, delete."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Response
from fastapi.responses import StreamingResponse

from controlplane.api.answers import STARTS_OPERATION, accepted, json_answer
from controlplane.api.dependencies import (
    Actor,
    App,
    Asker,
    Cursor,
    Limit,
    ModelName,
    ReasonQuery,
    VersionSelector,
    decode_number_cursor,
    encode_cursor,
    require_code,
)
from controlplane.api.problems import responses
from controlplane.api.ranges import ByteRange, parse_range
from controlplane.api.schemas.versions import (
    FootprintList,
    PortabilityList,
    PublishRequest,
    ReportPage,
    TargetName,
    VersionDetail,
    VersionFootprint,
    VersionPage,
)
from controlplane.domain.portability import ModelFacts
from controlplane.services.publishing import PublishCommand
from controlplane.services.versions import Download

router = APIRouter(prefix="/models/{model}/versions", tags=["versions"])

_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


@router.get("", operation_id="listVersions", response_model=VersionPage, responses=responses())
async def list_versions(services: App, model: ModelName, cursor: Cursor = None, limit: Limit = 100) -> Response:
    """List a model's versions that are not deleted, newest first."""
    before = decode_number_cursor(cursor)
    head = services.models.peek(model) or await services.models.get(model)
    entries = [entry for entry in reversed(head.live_versions) if before is None or entry.number < before]
    more = encode_cursor(str(entries[limit - 1].number)) if len(entries) > limit else None
    return json_answer(VersionPage(items=entries[:limit], next_cursor=more))


@router.post(
    "",
    operation_id="publishVersion",
    **STARTS_OPERATION,
)
async def publish_version(
    services: App, model: ModelName, body: PublishRequest, actor: Actor, asker: Asker
) -> Response:
    """Publish an upload as the model's next version, and create the model if it does not exist.

    TorchScript, and files that are read with `trust`, contain code: they need a key with the scope `code`.
    The operation's result has `model`, `version`, `reference` and `warnings`.
    """
    if body.trust:
        require_code(asker, "publishing with trust, which runs the model's code,")
    command = PublishCommand(model=model, actor=actor, asker=asker, **dict(body))
    return accepted(await services.publishing.start(command))


@router.get("/{version}", operation_id="getVersion", response_model=VersionDetail, responses=responses())
async def get_version(services: App, model: ModelName, version: VersionSelector) -> Response:
    """Return a version with its manifest: files, signature, golden samples, lineage, parity."""
    head, entry, manifest = await services.versions.detail(model, version)
    aliases = sorted(name for name, number in head.aliases.items() if number == entry.number)
    conditions = [services.scrubbing.condition(head.name, entry.number)]
    recorded = await services.versions.recorded_samples(head.name, entry, manifest)
    return json_answer(
        VersionDetail(
            model=head.name,
            entry=entry,
            manifest=manifest,
            aliases=aliases,
            recorded_samples=recorded,
            conditions=conditions,
        )
    )


@router.get("/{version}/footprints", operation_id="getFootprints", response_model=FootprintList, responses=responses())
async def get_footprints(services: App, model: ModelName, version: VersionSelector) -> Response:
    """Return the measured memory footprints of a version on all machines, one for each way that it was run."""
    found = await services.versions.footprints(model, version)
    return json_answer(FootprintList(items=[VersionFootprint.of(key, measured) for key, measured in found]))


@router.get(
    "/{version}/portability", operation_id="getPortability", response_model=PortabilityList, responses=responses()
)
async def get_portability(
    services: App,
    model: ModelName,
    version: VersionSelector,
    target: Annotated[
        list[TargetName] | None,
        Query(
            max_length=64,
            description="Only these targets: `embedded`, the release of an image such as `26.08`, or a server.",
        ),
    ] = None,
) -> Response:
    """Return whether a version loads on each target, from facts that were recorded when it was published."""
    _, _, manifest = await services.versions.detail(model, version)
    found = services.portability.check(ModelFacts.of_manifest(manifest), target or ())
    return json_answer(PortabilityList(items=list(found)))


@router.delete("/{version}", operation_id="deleteVersion", status_code=204, responses=responses(409))
async def delete_version(
    services: App,
    model: ModelName,
    version: VersionSelector,
    actor: Actor,
    reason: ReasonQuery = "",
) -> None:
    """Delete a version. Refused while an alias points to it or a deployment needs it. Its number is not used again."""
    await services.versions.delete(model, version, actor=actor, reason=reason)


@router.get(
    "/{version}/files/{path:path}",
    operation_id="downloadFile",
    response_class=StreamingResponse,
    responses={
        200: {"description": "The whole file", "content": _BINARY},
        206: {"description": "The requested part", "content": _BINARY},
        304: {"description": "The client's copy is current"},
        **responses(416),
    },
)
async def download_file(
    services: App,
    model: ModelName,
    version: VersionSelector,
    path: Annotated[str, Path(description="The file's path inside the artifact.", examples=["model.onnx"])],
    range_header: Annotated[str | None, Header(alias="Range", description="bytes=FIRST-LAST")] = None,
    if_none_match: Annotated[str | None, Header(description="ETag of the client's copy.")] = None,
    if_range: Annotated[str | None, Header(description="Return a part only if the file still has this ETag.")] = None,
) -> Response:
    """Download a file of a version. Its ETag is its SHA-256; `Range` resumes an interrupted download."""
    return await _send(await services.versions.download(model, version, path), range_header, if_none_match, if_range)


@router.get(
    "/{version}/samples",
    operation_id="downloadSamples",
    response_class=StreamingResponse,
    responses={200: {"description": "The golden samples, an .npz", "content": _BINARY}, **responses()},
)
async def download_samples(services: App, model: ModelName, version: VersionSelector) -> Response:
    """Download a version's golden samples."""
    return await _send(await services.versions.samples(model, version), None, None, None)


@router.get(
    "/{version}/log",
    operation_id="downloadLog",
    response_class=StreamingResponse,
    responses={200: {"description": "The log", "content": {"text/plain": {}}}, **responses()},
)
async def download_log(services: App, model: ModelName, version: VersionSelector) -> Response:
    """Download the log of the conversion that made a version."""
    return await _send(await services.versions.log(model, version), None, None, None, media_type="text/plain")


@router.get("/{version}/reports", operation_id="listReports", response_model=ReportPage, responses=responses())
async def list_reports(
    services: App, model: ModelName, version: VersionSelector, cursor: Cursor = None, limit: Limit = 20
) -> Response:
    """Return the qualification reports of a version, newest first.

    A report has a verdict for artifact, configuration, numbers and performance. It never changes.
    """
    before = decode_number_cursor(cursor)
    items = await services.versions.reports(model, version, before=before, limit=limit + 1)
    more = encode_cursor(str(items[limit - 1].number)) if len(items) > limit else None
    return json_answer(ReportPage(items=items[:limit], next_cursor=more))


async def _send(
    download: Download,
    range_header: str | None,
    if_none_match: str | None,
    if_range: str | None,
    media_type: str = "application/octet-stream",
) -> Response:
    etag = f'"{download.file.sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "X-Content-Type-Options": "nosniff",  # a browser with a session may open it
    }
    if if_none_match is not None and (if_none_match.strip() == "*" or etag in if_none_match):
        return Response(status_code=304, headers=headers)
    size = download.file.size_bytes
    asked = range_header if if_range is None or if_range.strip() == etag else None
    part = parse_range(asked, size)
    if part is ByteRange.UNSATISFIABLE:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
    start, length = (part.start, part.length) if part is not None else (0, size)
    headers["Content-Length"] = str(length)
    if part is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.start + part.length - 1}/{size}"

    chunks = download.read(start, length)
    # Read before the status is sent, so that a store that cannot be read is an error and not a body that breaks off.
    first = await anext(chunks, b"")

    async def body() -> AsyncIterator[bytes]:
        async with aclosing(chunks):
            yield first
            async for chunk in chunks:
                yield chunk

    return StreamingResponse(body(), status_code=200 if part is None else 206, media_type=media_type, headers=headers)
