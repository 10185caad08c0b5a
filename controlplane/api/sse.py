"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from collections.abc import AsyncIterator

from fastapi import Request
from fastapi.responses import StreamingResponse

from controlplane.api.auth import check_again
from controlplane.errors import UnauthenticatedError

HEARTBEAT_SECONDS = 15.0
"""A comment line is sent after this many seconds of silence, so that proxies keep the connection."""

MEDIA_TYPE = "text/event-stream"


def event(name: str, data: str, event_id: str = "") -> str:
    """Return one event; ``data`` must be one line."""
    identity = f"id: {event_id}\n" if event_id else ""
    return f"{identity}event: {name}\ndata: {data}\n\n"


HEARTBEAT = ": keep-alive\n\n"


def stream(request: Request, lines: AsyncIterator[str]) -> StreamingResponse:
    """Return the response that sends events as they occur, until the caller's key or session ends."""
    return StreamingResponse(
        _admitted(request, lines),
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _admitted(request: Request, lines: AsyncIterator[str]) -> AsyncIterator[str]:
    async for line in lines:
        try:
            await check_again(request.scope)
        except UnauthenticatedError:
            return  # a client that asks again gets the reason
        yield line
