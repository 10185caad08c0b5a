"""Handles HTTP requests during a rollout: sends them to either version, passes on its answer, compares both."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

import httpx

from controlplane.domain.arrays import Array
from controlplane.domain.comparison import compare
from controlplane.domain.names import candidate_name
from controlplane.domain.tolerance import OutputComparison
from controlplane.gateway.haproxy.config import PIN
from controlplane.gateway.lost import UNKNOWN_MODEL, is_lost, lost_error
from controlplane.gateway.rollout.comparison import Arm
from controlplane.gateway.rollout.split import SplitResult, TrafficSplit, tolerances
from controlplane.triton.answers import from_http
from controlplane.triton.wire import HEAD_LENGTH

_HEAD = HEAD_LENGTH.encode()
_LENGTH = b"content-length"
_NOT_SENT = (b"host", _LENGTH, b"accept-encoding")
"""Request headers that are not passed on.

Both versions answer uncompressed, so that the answers can be compared and rewritten to the model's own name.
"""

Headers = Sequence[tuple[bytes, bytes]]


class ReplySpace(Protocol):
    """Finds a server for the active version, and waits if there is none."""

    def acquire(self, model: str, size: int) -> AbstractAsyncContextManager[str]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """An inference request of a client.

    Attributes:
        version: The version in its path; empty if it names none.
        query: Its query, without the question mark.
        headers: Its headers, without those of the connection.
        body: Its body.
        drawn: The size of the sample that HAProxy drew it from, in requests per million; None if it was not drawn.
    """

    version: str
    query: str
    headers: Headers
    body: bytes
    drawn: int | None


@dataclass(frozen=True, slots=True)
class HttpReply:
    """Triton's answer.

    Attributes:
        status: HTTP status; 0 if there was no connection.
        headers: The headers, with lower-case names.
        body: The unchanged body.
    """

    status: int
    headers: Headers = ()
    body: bytes = b""

    @property
    def failed(self) -> bool:
        """Whether it is an error."""
        return self.status >= 400

    @property
    def absent(self) -> bool:
        """Whether Triton does not know the model, or cannot be reached."""
        return not self.status or (self.failed and UNKNOWN_MODEL.encode() in self.body[:500])

    def header(self, name: bytes) -> bytes | None:
        """Return a header's value."""
        return next((value for key, value in self.headers if key == name), None)


async def ask_http(
    split: TrafficSplit,
    request: HttpRequest,
    room: ReplySpace,
    clients: Mapping[str, httpx.AsyncClient],
    copied: Callable[[HttpReply], None],
) -> SplitResult[HttpReply]:
    """Send a request to one of the two versions and return its answer.

    Args:
        split: The model's split.
        request: The client's request.
        room: Finds a server for the old version.
        clients: The HTTP services of the servers, by name.
        copied: Called with the new version's answer to a copy of the request.

    Raises:
        ControlPlaneError: The request cannot be sent to the old version, or its server lost the model.
        httpx.ConnectError: There is no connection to the old version's server.
    """
    pinned = pin_http(request) or request.version
    named = split.named(pinned)

    async def ask(arm: Arm) -> HttpReply:
        if arm is Arm.NEW:
            name = candidate_name(split.model)
            try:
                reply = await send_http(clients[split.server()], name, "", request)
            except httpx.ConnectError:
                return HttpReply(0)
            return renamed_http(reply, name, split.model)
        # Triton rejects a version that is neither of the two.
        version = request.version if named is Arm.NEW else pinned
        async with room.acquire(split.model, len(request.body)) as server:
            reply = await send_http(clients[server], split.model, "" if named is Arm.NEW else version, request)
        if reply.failed and is_lost(reply.body[:500].decode(errors="replace")):
            raise lost_error(split.model)  # neither version caused it
        return reply

    def compared(old: HttpReply, new: HttpReply) -> tuple[OutputComparison, ...]:
        expected = _tensors(old)
        return compare(_tensors(new), expected, tolerances(split.rollout, expected))

    if pinned and named is None:
        return SplitResult(await ask(Arm.OLD), Arm.OLD, "by-version")
    return await split.answer(named, request.drawn, ask, compared, copied)


async def send_http(client: httpx.AsyncClient, name: str, version: str, request: HttpRequest) -> HttpReply:
    """Send a request to a server under a name and version, and return the reply.

    Raises:
        httpx.ConnectError: There is no connection to the server.
    """
    path = f"/v2/models/{quote(name)}" + (f"/versions/{quote(version)}" if version else "") + "/infer"
    built = client.build_request("POST", f"{path}?{request.query}" if request.query else path, content=request.body)
    length = str(len(request.body)).encode()
    kept = [(key, value) for key, value in request.headers if key.lower() not in _NOT_SENT]
    # httpx adds headers of its own; set the headers so that the request is passed on unchanged.
    built.headers = httpx.Headers([(b"host", built.url.netloc), *kept, (_LENGTH, length)])
    try:
        response = await client.send(built, stream=True)
        try:
            body = b"".join([chunk async for chunk in response.aiter_raw()])
        finally:
            await response.aclose()
    except httpx.ConnectError:
        raise
    except httpx.TimeoutException:
        return _own(504, "Triton gave no answer in time")
    except httpx.TransportError as error:
        return _own(502, f"the Triton server closed the connection: {type(error).__name__}")
    return HttpReply(response.status_code, [(key.lower(), value) for key, value in response.headers.raw], body)


def _own(status: int, error: str) -> HttpReply:
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (_LENGTH, str(len(body)).encode())]
    return HttpReply(status, headers, body)


def pin_http(request: HttpRequest) -> str:
    """Return the version that a request pins in a header or parameter; empty if it pins none."""
    for key, value in request.headers:
        if key.lower() == PIN.encode():
            return value.decode("latin-1").strip()
    length = next((value for key, value in request.headers if key.lower() == _HEAD), None)
    head = request.body[: int(length)] if length is not None and length.isdigit() else request.body
    if f'"{PIN}"'.encode() not in head:  # avoids parsing megabytes of JSON in vain, which would delay all requests
        return ""
    try:
        return str(json.loads(head)["parameters"][PIN])
    except (ValueError, KeyError, TypeError):
        return ""


def renamed_http(reply: HttpReply, name: str, own: str) -> HttpReply:
    """Return the answer with the model's own name."""
    if reply.failed:  # the name is part of a message
        body = reply.body.replace(name.encode(), own.encode())
    else:
        body = reply.body.replace(json.dumps(name).encode(), json.dumps(own).encode(), 1)
    shorter = len(reply.body) - len(body)
    headers = [
        (key, str(int(value) - shorter).encode() if key in (_HEAD, _LENGTH) else value) for key, value in reply.headers
    ]
    return HttpReply(reply.status, headers, body)


def _tensors(reply: HttpReply) -> dict[str, Array]:
    head = reply.header(_HEAD)
    return from_http(reply.body, int(head) if head is not None else None)
