"""Processing around every request, in plain ASGI: metrics, authentication, body limits, strict JSON, idempotency keys.

Plain ASGI rather than Starlette's ``BaseHTTPMiddleware``, which costs a task and two queues for each request.
"""

import json
import logging
import re
import time
from dataclasses import dataclass
from typing import Any, NoReturn

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controlplane.api.auth import Authenticator, principal_of
from controlplane.api.metrics.registry import RequestMetrics
from controlplane.api.problems import error_response, problem_response
from controlplane.errors import ControlPlaneError, InvalidInputError
from controlplane.services.error_info import ErrorInfo
from controlplane.services.facade import Services
from controlplane.services.idempotency import StoredAnswer, Turn
from controlplane.services.large_json import LARGE_BYTES

logger = logging.getLogger(__name__)

_ANSWER_MAX_BYTES = 1024 * 1024
_BLOB = re.compile(r"/v1/uploads/[^/]+/blobs/[^/]+")
_WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_JSON_INFERENCE = re.compile(r"/v1/deployments/[^/]+/infer")
_INFERENCE = re.compile(r"/v[12]/.*/(?:infer|generate)")
_UNREPEATED = re.compile(r"/v1/deployments/[^/]+/infer|/v1/keys|/v1/session(/codes)?")
"""POSTs whose responses are not stored: those that change nothing, and those that return a secret."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Maximum sizes of bodies, in bytes. Blobs are limited to their announced sizes.

    Attributes:
        inference: Of an inference request with its tensors.
        other: Of every other request.
    """

    inference: int
    other: int

    def of(self, path: str) -> int:
        """Return the limit for a path."""
        return self.inference if _INFERENCE.fullmatch(path) else self.other


class Edge:
    """The outermost layer: counts and authenticates requests, checks their bodies, and handles unexpected errors."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics, limits: BodyLimits) -> None:
        self._app = app
        self._metrics = metrics
        self._limits = limits
        self._gate = Authenticator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            try:
                await self._gate.admit(scope)
            except ControlPlaneError as error:
                await error_response(error, scope["path"])(scope, receive, counted)
                return
            if scope["method"] in _WITH_BODY and not (scope["method"] == "PUT" and _BLOB.fullmatch(scope["path"])):
                await self._with_body(scope, receive, counted)
            else:
                await self._app(scope, receive, counted)
        except Exception as error:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if status:
                raise  # the response is incomplete: only closing the connection shows that
            await error_response(error, scope["path"])(scope, receive, counted)
        finally:
            self._metrics.count(scope, status, time.perf_counter() - started)

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(scope, receive, self._limits.of(scope["path"]))
        if isinstance(body, ErrorInfo):
            await problem_response(body, 413, scope["path"])(scope, receive, send)
            return
        if len(body) >= LARGE_BYTES and _JSON_INFERENCE.fullmatch(scope["path"]):
            try:
                body, scope["controlplane.data"] = await scope["app"].state.services.large_json.parse(body)
            except InvalidInputError as error:
                fault = ErrorInfo(code="malformed-request", title="Malformed request", detail=f"body: {error.message}")
                await problem_response(fault, 400, scope["path"])(scope, receive, send)
                return
            except ControlPlaneError as error:
                await error_response(error, scope["path"])(scope, receive, send)
                return
        elif wrong := _unusable_json(body):
            fault = ErrorInfo(code="malformed-request", title="Malformed request", detail=f"body: {wrong}")
            await problem_response(fault, 400, scope["path"])(scope, receive, send)
            return
        scope["controlplane.body"] = body
        await self._app(scope, _replay(body, receive), send)


class IdempotencyKeys:
    """Answers a repeated POST with a known ``Idempotency-Key`` with the first response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] != "POST" or _UNREPEATED.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        key = headers.get("idempotency-key")
        if not key or len(key) > 255:
            await self._app(scope, receive, send)  # the route's own check refuses a key that is too long
            return
        services: Services = scope["app"].state.services
        target = f"POST {scope['path']}?{scope['query_string'].decode('latin-1')}"
        try:
            begun = await services.idempotency.begin(
                key, _whose(scope, headers), target, scope.get("controlplane.body", b"")
            )
        except ControlPlaneError as error:
            await error_response(error, scope["path"])(scope, receive, send)
            return
        if isinstance(begun, StoredAnswer):
            await _send_stored(begun, send)
            return
        await self._first(begun, services, scope, receive, send)

    async def _first(self, turn: Turn, services: Services, scope: Scope, receive: Receive, send: Send) -> None:
        held: list[Message] = []
        size = 0

        async def hold(message: Message) -> None:
            # Held back until it is stored: a response that a client has seen must be repeatable.
            nonlocal size
            held.append(message)
            size += len(message.get("body", b""))

        try:
            await self._app(scope, receive, hold)
        except BaseException:
            await services.idempotency.abandon(turn)
            raise
        status = held[0]["status"] if held else 500
        if 200 <= status < 300 and size <= _ANSWER_MAX_BYTES:
            answer = Headers(raw=held[0]["headers"])
            await services.idempotency.finish(
                turn,
                StoredAnswer(
                    request=turn.request,
                    status=status,
                    media_type=answer.get("content-type", "application/json"),
                    location=answer.get("location"),
                    body=b"".join(message.get("body", b"") for message in held[1:]).decode(),
                ),
            )
        else:
            await services.idempotency.abandon(turn)  # nothing was done: the client may correct and resend it
        for message in held:
            await send(message)


def _whose(scope: Scope, headers: Headers) -> str:
    """Return the owner of an idempotency key: each API key has its own set, regardless of the actor's name."""
    principal = principal_of(scope)
    claimed = headers.get("x-actor", "")
    return claimed if principal is None else f"{principal.key_id}\n{claimed}"


async def _read(scope: Scope, receive: Receive, limit: int) -> bytes | ErrorInfo:
    length = Headers(scope=scope).get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > limit:
        return _too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(parts)
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            return _too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int) -> ErrorInfo:
    return ErrorInfo(
        code="too-large",
        title="Too large",
        detail=f"the body exceeds {limit} bytes; send files as uploads",
        details={"limit_bytes": limit},
    )


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()  # the next message is the disconnect
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _unusable_json(body: bytes) -> str:
    """Return why a JSON body cannot be used; empty if it can, or is not JSON (the routes report that).

    Python's parser accepts what JSON (RFC 8259) does not have: NaN, infinities, and single surrogates, which no
    response and no object in the bucket can contain.
    """
    if b"NaN" not in body and b"Infinity" not in body and b"\\u" not in body:
        return ""
    try:
        parsed = json.loads(body, parse_constant=_refuse)
        if b"\\u" in body:
            json.dumps(parsed, ensure_ascii=False).encode()
    except _NotJsonError as error:
        return str(error)
    except UnicodeEncodeError:
        return "a string contains an unpaired surrogate, which is not valid Unicode"
    except (ValueError, RecursionError):
        return ""
    return ""


class _NotJsonError(Exception):
    pass


def _refuse(constant: str) -> NoReturn:
    raise _NotJsonError(f"{constant} is not valid JSON; send it as a string")


async def _send_stored(answer: StoredAnswer, send: Send) -> None:
    body = answer.body.encode()
    headers: list[tuple[bytes, Any]] = [
        (b"content-type", answer.media_type.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"idempotent-replayed", b"true"),
    ]
    if answer.location:
        headers.append((b"location", answer.location.encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
