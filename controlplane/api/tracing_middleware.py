"""Opens a span for each request as a child of the caller's (W3C ``traceparent``), if tracing is enabled."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controlplane import tracing
from controlplane.api.metrics.registry import route_of

_UNTRACED = frozenset({"/metrics", "/healthz", "/readyz"})
"""Paths that monitoring systems request all the time."""


class TracingMiddleware:
    """The outermost middleware, which opens the spans."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"] in _UNTRACED:
            await self._app(scope, receive, send)
            return
        parent = Headers(scope=scope).get("traceparent", "")[:64]
        with tracing.span(scope["method"], parent=parent) as span:

            async def record_status(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                await send(message)

            await self._app(scope, receive, record_status)
            span.update_name(f"{scope['method']} {route_of(scope)}")
