"""The audit log: who changed what, when and why."""

from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from controlplane.api.answers import json_answer
from controlplane.api.dependencies import App, Asker, Cursor, Limit, decode_cursor, encode_cursor
from controlplane.api.problems import Documented, responses
from controlplane.registry.audit_log import AuditEntry, AuditKind

router = APIRouter()

JSON_LINES = "application/jsonl"
_DEFAULT = timedelta(hours=24)
_LINES: Documented = {
    200: {"content": {JSON_LINES: {"schema": {"type": "string"}}}},
}


class AuditRecord(BaseModel):
    """One commit."""

    at: datetime = Field(description="When it was committed (UTC, the writer's clock).")
    stored_at: datetime = Field(description="When the store received it (UTC); the records are in this order.")
    kind: AuditKind = Field(description="model, alias, deployment, key or server.")
    name: str = Field(description="The model; empty for API keys and servers.")
    revision: int = Field(description="Number of the revision in its chain.")
    actor: str = Field(description="Who changed it: the API key's name, and the person that the request named.")
    reason: str = Field(description="What changed, and why if the request gave a reason.")
    changed: list[str] = Field(description="Parts of the state that differ from the previous revision.")
    commit_id: str = Field(description="Unique id of the commit.")
    error: str = Field(default="", description="Why the revision cannot be read; empty if it can.")


class AuditPage(BaseModel):
    """A page of commits, oldest first."""

    items: list[AuditRecord] = Field(description="The commits.")
    next_cursor: str | None = Field(description="Pass it as `cursor` for the next page; null on the last page.")


@router.get(
    "/audit",
    tags=["audit"],
    operation_id="getAuditLog",
    response_model=AuditPage,
    responses=responses(also=_LINES),
)
async def get_audit_log(
    services: App,
    asker: Asker,
    since: Annotated[
        datetime | None, Query(description="Only commits at this time or later; default: 24 hours ago.")
    ] = None,
    until: Annotated[datetime | None, Query(description="Only commits before this time.")] = None,
    model: Annotated[str | None, Query(max_length=256, description="Only this model and its deployment.")] = None,
    format: Annotated[  # noqa: A002 - the name of the parameter
        Literal["json", "jsonl"],
        Query(description="json: a page; jsonl: all commits as a stream, one JSON object a line."),
    ] = "json",
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Response:
    """Return who changed what, when and why, oldest first: models, aliases, deployments, API keys and cordons.

    Requires the scope `audit`. A key that is restricted to models sees only their commits.
    """
    begin = _utc(since) or datetime.now(UTC) - _DEFAULT
    end = _utc(until)
    after = decode_cursor(cursor)
    if format == "jsonl":
        entries = services.audit.stream(asker, since=begin, until=end, model=model)
        first = await anext(entries, None)  # so that a failure is an error response

        async def lines() -> AsyncIterator[str]:
            if first is not None:
                yield _line(first)
            async for entry in entries:
                yield _line(entry)

        return StreamingResponse(lines(), media_type=JSON_LINES, headers={"Cache-Control": "no-store"})
    found, following = await services.audit.page(asker, since=begin, until=end, model=model, after=after, limit=limit)
    return json_answer(
        AuditPage(
            items=[AuditRecord.model_validate(asdict(entry)) for entry in found],
            next_cursor=encode_cursor(following) if following else None,
        )
    )


def _line(entry: AuditEntry) -> str:
    return AuditRecord.model_validate(asdict(entry)).model_dump_json() + "\n"


def _utc(given: datetime | None) -> datetime | None:
    return given if given is None or given.tzinfo is not None else given.replace(tzinfo=UTC)
