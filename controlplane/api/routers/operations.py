"""Operations and events: polling, waiting and following."""

from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from controlplane.api import sse
from controlplane.api.answers import json_answer
from controlplane.api.dependencies import (
    IDEMPOTENT,
    App,
    Asker,
    Cursor,
    Limit,
    Wait,
    decode_cursor,
    encode_cursor,
    may_see,
)
from controlplane.api.problems import Documented, responses
from controlplane.api.query import name_matches
from controlplane.api.schemas.operations import EventList, OperationPage
from controlplane.domain.access import Principal
from controlplane.domain.states import Event
from controlplane.errors import NotFoundError
from controlplane.services.facade import Services
from controlplane.services.operations import Operation

router = APIRouter()

OperationId = Annotated[str, Path(max_length=256, description="The operation's identifier.")]
_EVENTS: Documented = {
    200: {"description": "Server-sent events", "content": {sse.MEDIA_TYPE: {"schema": {"type": "string"}}}}
}


def _concerns(operation: Operation, asker: Principal | None) -> bool:
    """Return whether the caller may see an operation: it concerns a model of theirs, or they started it."""
    if asker is None or operation.actor.partition("/")[0] == asker.name:
        return True
    about_model = operation.kind in {"publish", "convert", "deploy", "tune"}
    return asker.sees(operation.subject.partition(":")[0].partition("@")[0]) if about_model else not asker.models


async def _operation(services: Services, asker: Principal | None, operation_id: str, wait: float = 0.0) -> Operation:
    """Return an operation if the caller may see it."""
    if services.deployments.is_operation(operation_id):
        found = await services.deployments.operation(operation_id, wait_seconds=wait)
    else:
        found = await services.operations.wait(operation_id, wait)
    if not _concerns(found, asker):
        raise NotFoundError(
            f"operation {operation_id!r} does not exist, or this API key cannot see it", operation=operation_id
        )
    return found


@router.get(
    "/operations",
    tags=["operations"],
    operation_id="listOperations",
    response_model=OperationPage,
    responses=responses(),
)
async def list_operations(services: App, asker: Asker, cursor: Cursor = None, limit: Limit = 20) -> Response:
    """List operations, newest first. Operations of deployments are not listed; list the deployments instead."""
    items = await services.operations.page(after=decode_cursor(cursor), limit=limit + 1)
    more = encode_cursor(items[limit - 1].id) if len(items) > limit else None
    shown = [item for item in items[:limit] if _concerns(item, asker)]
    return json_answer(OperationPage(items=shown, next_cursor=more))


@router.get(
    "/operations/{operation_id}",
    tags=["operations"],
    operation_id="getOperation",
    response_model=Operation,
    responses=responses(),
)
async def get_operation(services: App, asker: Asker, operation_id: OperationId, wait: Wait = 0.0) -> Response:
    """Return an operation; with `wait`, when it has ended or after that many seconds."""
    return json_answer(await _operation(services, asker, operation_id, wait))


@router.get(
    "/operations/{operation_id}/events",
    tags=["operations"],
    operation_id="followOperation",
    response_class=Response,
    responses=responses(also=_EVENTS),
)
async def follow_operation(request: Request, services: App, asker: Asker, operation_id: OperationId) -> Response:
    """Follow an operation: an event `operation` for each change until it ends."""
    await _operation(services, asker, operation_id)
    if services.deployments.is_operation(operation_id):
        states = services.deployments.follow(operation_id, heartbeat_seconds=sse.HEARTBEAT_SECONDS)
    else:
        states = services.operations.follow(operation_id, heartbeat_seconds=sse.HEARTBEAT_SECONDS)

    async def lines() -> AsyncIterator[str]:
        async for operation in states:
            yield sse.HEARTBEAT if operation is None else sse.event("operation", operation.model_dump_json())

    return sse.stream(request, lines())


@router.post(
    "/operations/{operation_id}/cancel",
    tags=["operations"],
    dependencies=[IDEMPOTENT],
    operation_id="cancelOperation",
    response_model=Operation,
    responses=responses(),
)
async def cancel_operation(services: App, asker: Asker, operation_id: OperationId) -> Response:
    """Cancel an operation of this instance; one that has ended is not changed. Deployments cannot be cancelled."""
    if asker is not None and asker.models:
        await _operation(services, asker, operation_id)
    return json_answer(await services.operations.cancel(operation_id))


@router.get(
    "/events",
    tags=["events"],
    operation_id="listEvents",
    response_model=EventList,
    responses={
        200: {
            "description": "Events; with `follow`, as server-sent events",
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/EventList"}},
                sse.MEDIA_TYPE: {"schema": {"type": "string"}},
            },
        },
        **responses(),
    },
)
async def list_events(
    request: Request,
    services: App,
    asker: Asker,
    after: Annotated[int, Query(ge=0, le=2**53, description="Only events with a greater ID.")] = 0,
    limit: Limit = 100,
    subject: Annotated[
        str | None,
        Query(max_length=256, description="Only events of this model or server; `*` and `?` stand for any characters."),
    ] = None,
    kind: Annotated[
        Literal["Normal", "Warning"] | None, Query(alias="type", description="Only events of this type.")
    ] = None,
    reason: Annotated[str | None, Query(max_length=64, description="Only events with this reason.")] = None,
    follow: Annotated[bool, Query(description="Follow new events as server-sent events.")] = False,
) -> Response:
    """Return the events of this instance."""

    def wanted(event: Event) -> bool:
        return (
            may_see(asker, event.subject)
            and name_matches(subject, event.subject)
            and kind in {None, event.type}
            and reason in {None, event.reason}
        )

    if not follow:
        events = [event for event in services.events.after(after) if wanted(event)][-limit:]
        return json_answer(EventList(items=events, last_id=events[-1].id if events else after))

    async def lines() -> AsyncIterator[str]:
        async for event in services.events.follow(after, heartbeat_seconds=sse.HEARTBEAT_SECONDS):
            if event is None:
                yield sse.HEARTBEAT
            elif wanted(event):
                yield sse.event("event", event.model_dump_json(), str(event.id))

    return sse.stream(request, lines())
