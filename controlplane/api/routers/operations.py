"""Operations and events, to be polled, waited for or followed."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from controlplane.api import sse
from controlplane.api.answers import json_answer
from controlplane.api.dependencies import IDEMPOTENT, App, Cursor, Limit, Wait, decode_cursor, encode_cursor
from controlplane.api.problems import Documented, responses
from controlplane.api.schemas.operations import EventList, OperationPage
from controlplane.services.operations import Operation

router = APIRouter()

OperationId = Annotated[str, Path(max_length=256, description="The operation's identifier.")]
_EVENTS: Documented = {
    200: {"description": "Server-sent events", "content": {sse.MEDIA_TYPE: {"schema": {"type": "string"}}}}
}


@router.get(
    "/operations",
    tags=["operations"],
    operation_id="listOperations",
    response_model=OperationPage,
    responses=responses(),
)
async def list_operations(services: App, cursor: Cursor = None, limit: Limit = 20) -> Response:
    """List operations, newest first. Deployments are listed as deployments."""
    items = await services.operations.page(after=decode_cursor(cursor), limit=limit + 1)
    more = encode_cursor(items[limit - 1].id) if len(items) > limit else None
    return json_answer(OperationPage(items=items[:limit], next_cursor=more))


@router.get(
    "/operations/{operation_id}",
    tags=["operations"],
    operation_id="getOperation",
    response_model=Operation,
    responses=responses(),
)
async def get_operation(services: App, operation_id: OperationId, wait: Wait = 0.0) -> Response:
    """Return an operation; with `wait`, once it ended or that many seconds later, as it stands by then."""
    if services.deployments.is_operation(operation_id):
        return json_answer(await services.deployments.operation(operation_id, wait_seconds=wait))
    return json_answer(await services.operations.wait(operation_id, wait))


@router.get(
    "/operations/{operation_id}/events",
    tags=["operations"],
    operation_id="followOperation",
    response_class=Response,
    responses=responses(also=_EVENTS),
)
async def follow_operation(services: App, operation_id: OperationId) -> Response:
    """Follow an operation: an event `operation` for each change, up to its end."""
    if services.deployments.is_operation(operation_id):
        await services.deployments.operation(operation_id, wait_seconds=0)
        states = services.deployments.follow(operation_id, heartbeat_seconds=sse.HEARTBEAT_SECONDS)
    else:
        await services.operations.get(operation_id)
        states = services.operations.follow(operation_id, heartbeat_seconds=sse.HEARTBEAT_SECONDS)

    async def lines() -> AsyncIterator[str]:
        async for operation in states:
            yield sse.HEARTBEAT if operation is None else sse.event("operation", operation.model_dump_json())

    return sse.stream(lines())


@router.post(
    "/operations/{operation_id}/cancel",
    tags=["operations"],
    dependencies=[IDEMPOTENT],
    operation_id="cancelOperation",
    response_model=Operation,
    responses=responses(),
)
async def cancel_operation(services: App, operation_id: OperationId) -> Response:
    """Cancel an operation that runs in this replica. One that ended stays as it is; deployments cannot be cancelled."""
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
    services: App,
    after: Annotated[int, Query(ge=0, le=2**53, description="Only events with a greater id.")] = 0,
    limit: Limit = 100,
    follow: Annotated[bool, Query(description="Go on with what comes, as server-sent events.")] = False,
) -> Response:
    """Return what changed on this replica, and why."""
    if not follow:
        events = services.events.after(after)[-limit:]
        return json_answer(EventList(items=events, last_id=events[-1].id if events else after))

    async def lines() -> AsyncIterator[str]:
        async for event in services.events.follow(after, heartbeat_seconds=sse.HEARTBEAT_SECONDS):
            yield sse.HEARTBEAT if event is None else sse.event("event", event.model_dump_json(), str(event.id))

    return sse.stream(lines())
