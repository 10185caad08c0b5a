"""The activator over HTTP: plain ASGI, with unchanged bodies.

HAProxy has already checked paths and sizes: requests are well-formed and belong to the v2 protocol.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import quote, unquote

import httpx
from starlette.types import Receive, Scope, Send

from controlplane.errors import (
    AccessError,
    ControlPlaneError,
    ForbiddenError,
    InvalidInputError,
    ModelUnavailableError,
    NotFoundError,
    RateLimitedError,
    StoreError,
    TooManyWaitingError,
    UnauthenticatedError,
)
from controlplane.gateway.activator.activator import Activator
from controlplane.gateway.activator.sequence_calls import ask_http as ask_http_sequence
from controlplane.gateway.auth import bearer
from controlplane.gateway.connections import Connections
from controlplane.gateway.haproxy.config import ATTENDED_PATH, CLIENT_HEADER, DRAWN_HEADER
from controlplane.gateway.lost import RETRY_AFTER_SECONDS, is_lost, lost_error
from controlplane.gateway.recording import CopiedRequest
from controlplane.gateway.rollout.comparison import Arm
from controlplane.gateway.rollout.http import Headers, HttpRequest, ask_http
from controlplane.gateway.sequence_steps import http_step
from controlplane.gateway.sequences import SequenceStep
from controlplane.gateway.stats import RequestLabels
from controlplane.triton.wire import HEAD_LENGTH

logger = logging.getLogger(__name__)

_PATH = re.compile(r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[0-9]+))?(?:/(?P<call>[a-z_]+))?")
_HOP_BY_HOP = frozenset(
    name.encode()
    for name in (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer"),
        *("transfer-encoding", "upgrade", "host", "expect", "authorization", CLIENT_HEADER),
        DRAWN_HEADER,
    )
)
"""Headers of RFC 9110 section 7.6.1, and three that concern only this hop."""
_UNKNOWN = "(none)"
_CALLS_OF_SEQUENCES = frozenset({"infer", "generate", "generate_stream"})


class _ClientGoneError(Exception):
    pass


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    error: str
    media_type: str = "application/json"
    retry_after: int = 0


@dataclass(frozen=True, slots=True)
class _Sent:
    """An answer that was sent, for the metrics."""

    status: int
    way: str = "activator"
    version: str = ""


class HttpProxy:
    """The ASGI application.

    Args:
        activator: The activator in which requests wait.
        servers: URL of the HTTP service of every server, by name; may change.
        answer_seconds: Timeout for the answer of a server.
        attended: Returns whether HAProxy's routes are those of the control plane.
    """

    def __init__(
        self,
        activator: Activator,
        servers: Mapping[str, str],
        *,
        answer_seconds: float,
        attended: Callable[[], bool],
    ) -> None:
        self._activator = activator
        self._attended = attended
        timeout = httpx.Timeout(answer_seconds, connect=5.0)
        self._clients = Connections(
            servers,
            lambda url: httpx.AsyncClient(
                base_url=url, timeout=timeout, trust_env=False, limits=httpx.Limits(max_connections=None)
            ),
        )

    async def close(self) -> None:
        """Close the connections to the servers."""
        for client in self._clients.opened():
            await client.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return
        raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
        if raw_path == ATTENDED_PATH.encode():
            await _send(send, _Answer(200 if self._attended() else 503, ""))
            return
        match = _PATH.fullmatch(raw_path.decode("latin-1"))
        name, version, call = ("", "", "") if match is None else _parts(match)
        if match is None or (name, version, call) == ("stats", "", ""):  # whether it is escaped or not
            await self._of_the_server(scope, send)
            return
        try:
            model, version = await self._activator.resolve(name, version)
            await self._admit(scope, model)
            known = self._activator.known(model)
            answer = await self._handle(scope, receive, send, model, version, call)
        except (_ClientGoneError, asyncio.CancelledError):
            return
        except NotFoundError:
            answer, known = _Answer(404, f"Request for unknown model: '{name}' is not found"), False
        except (AccessError, StoreError) as error:
            answer, known = _refused(error), False
        if isinstance(answer, _Answer):
            await _send(send, answer)
            answer = _Sent(answer.status)
        self._count(model if known else _UNKNOWN, answer)

    def _count(self, model: str, sent: "_Sent") -> None:
        self._activator.stats.answered(RequestLabels(model, sent.way, sent.version, "http", str(sent.status)))

    async def _admit(self, scope: Scope, model: str | None) -> None:
        keys, client = _values(scope, "authorization"), "".join(_values(scope, CLIENT_HEADER))
        await self._activator.access.admit(bearer(keys), model, client)

    async def _of_the_server(self, scope: Scope, send: Send) -> None:
        """Answer a request that any server could answer: health if none can, else pass it on if the key allows it."""
        path = scope["path"]
        if path == "/v2/health/live":
            await _send(send, _Answer(200, ""))
            return
        if path == "/v2/health/ready":
            await _send(send, _Answer(400, "no Triton server is ready", "text/plain"))
            return
        try:
            await self._admit(scope, None)
        except (AccessError, StoreError) as error:
            await _send(send, _refused(error))
            return
        for client in self._clients.values():
            try:
                response = await client.request(scope["method"], path, headers={"accept-encoding": "identity"})
            except httpx.TransportError:
                continue
            await _send_on(send, response.status_code, response.headers.raw)
            await send({"type": "http.response.body", "body": response.content})
            return
        await _send(send, _Answer(503, "no Triton server can be reached"))

    async def _handle(
        self, scope: Scope, receive: Receive, send: Send, model: str, version: str, call: str
    ) -> _Answer | _Sent:
        if call == "ready":
            ready = self._activator.can_serve(model, version)
            return _Answer(200, "") if ready else _Answer(400, "Model version not ready", "text/plain")
        if call == "stats" and not self._activator.at_once(model):
            return _Answer(400, f"requested model '{model}' is not available")
        try:
            return await self._forward(scope, receive, send, model, version, call)
        except InvalidInputError as error:
            return _Answer(400, error.message)
        except TooManyWaitingError as error:
            return _Answer(429, error.message, retry_after=RETRY_AFTER_SECONDS)
        except ModelUnavailableError as error:
            return _Answer(503, error.message, retry_after=int(error.details.get("retry_after_seconds", 0)))
        except httpx.TimeoutException:
            return _Answer(504, "Triton gave no answer in time")
        except httpx.TransportError as error:
            return _Answer(502, f"the Triton server closed the connection: {type(error).__name__}")
        except NotFoundError:
            raise
        except ControlPlaneError as error:
            return _Answer(503, error.message)

    async def _forward(self, scope: Scope, receive: Receive, send: Send, model: str, version: str, call: str) -> _Sent:
        headers = [(name, value) for name, value in scope["headers"] if name.lower() not in _HOP_BY_HOP]
        query = scope["query_string"].decode("latin-1")
        body = await self._read(receive, model)
        if call == "infer":
            self._activator.recorder.offer(model, _copied(headers, body))
        step = None
        if call in _CALLS_OF_SEQUENCES and self._activator.router.takes(model):
            limit = self._activator.room.limits.bytes_per_model
            step = await asyncio.to_thread(http_step, scope["headers"], body, inflated_max=limit)
        if step is not None and call == "infer":
            return await self._in_sequence(receive, send, model, step, HttpRequest(version, query, headers, body, None))
        split = self._activator.splits.get(model) if call == "infer" else None
        if split is not None:
            async with _while_connected(receive) as gone:
                drawn = next((int(value) for name, value in scope["headers"] if name == DRAWN_HEADER.encode()), None)
                asked = HttpRequest(version, query, headers, body, drawn)
                new = split.version(Arm.NEW)
                tried = await ask_http(
                    split,
                    asked,
                    self._activator,
                    self._clients,
                    lambda copy: self._count(model, _Sent(copy.status, "shadow", new)),
                )
                reply = tried.reply
                gone.check()
                await _send_on(send, reply.status, reply.headers)
                await send({"type": "http.response.body", "body": reply.body})
            return _Sent(reply.status, tried.way, split.version(tried.arm))
        async with _while_connected(receive) as gone, self._place(model, len(body), step, version) as (server, version):
            client = self._clients[server]
            asked_version = self._activator.open_routes.version(model, version)
            path = f"/v2/models/{quote(model)}{f'/versions/{version}' if version else ''}{f'/{call}' if call else ''}"
            request = client.build_request(
                scope["method"], f"{path}?{query}" if query else path, headers=headers, content=body
            )
            # httpx adds headers of its own; set the headers so that the request is passed on unchanged.
            request.headers = httpx.Headers([("host", request.url.netloc.decode()), *_text(headers)])
            if body or "content-length" in request.headers:
                request.headers["content-length"] = str(len(body))
            response = await client.send(request, stream=True)
            try:
                gone.check()
                chunks = response.aiter_raw()
                if response.status_code == 404:
                    error = b"".join([chunk async for chunk in chunks])
                    if is_lost(error.decode(errors="replace")):
                        raise lost_error(model)
                    chunks = _once(error)
                await _send_on(send, response.status_code, response.headers.raw)
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            finally:
                await response.aclose()
            return _Sent(response.status_code, version=asked_version)

    async def _in_sequence(
        self, receive: Receive, send: Send, model: str, step: SequenceStep, request: HttpRequest
    ) -> _Sent:
        async with _while_connected(receive) as gone:
            reply, placed = await ask_http_sequence(self._activator.router, model, step, request, self._clients)
            gone.check()
            await _send_on(send, reply.status, reply.headers)
            await send({"type": "http.response.body", "body": reply.body})
        return _Sent(reply.status, placed.way, placed.where.version)

    @asynccontextmanager
    async def _place(
        self, model: str, size: int, step: SequenceStep | None, version: str
    ) -> AsyncIterator[tuple[str, str]]:
        """Yield the server for a request and the version to name in it."""
        if step is None:
            async with self._activator.acquire(model, size) as server:
                yield server, version
            return
        async with self._activator.router.acquire(model, size, step, version, may_draw=False) as placed:
            if placed.where.candidate:
                raise InvalidInputError(
                    f"sequence {step.id} of {model} began on the new version of a rollout, which answers only infer "
                    "requests; send the requests of a sequence to one endpoint",
                    model=model,
                )
            yield placed.where.server, placed.version

    async def _read(self, receive: Receive, model: str) -> bytes:
        """Read a body, up to the limits of the model's request queue."""
        parts: list[bytes] = []
        with self._activator.room.place(model) as place:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _ClientGoneError
                part = message.get("body", b"")
                self._activator.room.hold(place, len(part))
                parts.append(part)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


class _ClientDisconnect:
    """Records whether the client has disconnected."""

    def __init__(self) -> None:
        self.happened = False

    def check(self) -> None:
        if self.happened:
            raise _ClientGoneError


@asynccontextmanager
async def _while_connected(receive: Receive) -> AsyncIterator[_ClientDisconnect]:
    """Cancel the body of the context when the client disconnects, so that no work is done for it."""
    task, gone = asyncio.current_task(), _ClientDisconnect()
    assert task is not None

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.happened = True
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield gone
    except asyncio.CancelledError:
        if gone.happened and task.uncancel() == 0:
            raise _ClientGoneError from None
        raise
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


def _refused(error: ControlPlaneError) -> _Answer:
    match error:
        case UnauthenticatedError():
            return _Answer(401, error.message)
        case ForbiddenError():
            return _Answer(403, error.message)
        case RateLimitedError():
            return _Answer(429, error.message, retry_after=int(error.details.get("retry_after_seconds", 1)))
    return _Answer(503, error.message)


def _copied(headers: Headers, body: bytes) -> CopiedRequest:
    length = next((value for name, value in headers if name.lower() == HEAD_LENGTH.encode()), b"")
    return CopiedRequest(body, int(length) if length.isdigit() else None)


def _parts(match: re.Match[str]) -> tuple[str, str, str]:
    return unquote(match["model"]), match["version"] or "", match["call"] or ""


def _values(scope: Scope, header: str) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == header.encode()]


def _text(headers: list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


async def _send(send: Send, answer: _Answer) -> None:
    body = json.dumps({"error": answer.error}).encode() if answer.error else b""
    headers = [(b"content-type", answer.media_type.encode()), (b"content-length", str(len(body)).encode())]
    if answer.retry_after:
        headers.append((b"retry-after", str(answer.retry_after).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_on(send: Send, status: int, headers: Headers) -> None:
    kept = [(name.lower(), value) for name, value in headers if name.lower() not in _HOP_BY_HOP]
    await send({"type": "http.response.start", "status": status, "headers": kept})
