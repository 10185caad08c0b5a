"""The activator over gRPC: it passes messages as bytes from the client to Triton and back.

https://github.com/triton-inference-server/common/blob/main/protobuf/grpc_service.proto
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc

from controlplane.errors import (
    ControlPlaneError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    RateLimitedError,
    TooManyWaitingError,
    UnauthenticatedError,
)
from controlplane.gateway.activator.activator import Activator
from controlplane.gateway.activator.sequence_calls import ask_grpc as ask_grpc_sequence
from controlplane.gateway.auth import bearer
from controlplane.gateway.connections import Connections
from controlplane.gateway.grpc_wire import Names, is_ready, read_names, rename, rename_stream_answer, stream_error
from controlplane.gateway.haproxy.config import CLIENT_HEADER, DRAWN_HEADER, SERVICE
from controlplane.gateway.lost import RETRY_AFTER_SECONDS, is_lost, lost_error
from controlplane.gateway.recording import CopiedRequest
from controlplane.gateway.rollout.comparison import Arm
from controlplane.gateway.rollout.grpc import GrpcReply, GrpcRequest, ask_grpc
from controlplane.gateway.sequence_steps import grpc_step
from controlplane.gateway.stats import RequestLabels

logger = logging.getLogger(__name__)

_UNLIMITED = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
_UNARY = frozenset({"ModelInfer", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"})
_UNKNOWN = "(none)"
_SHOWN = 256
"""Maximum number of characters of a model's name from a client that an error repeats."""
_READER = "reads a stream of Triton"
_OURS = ("grpc-", ":")
_NOT_PASSED = frozenset({"user-agent", "te", "content-type", "authorization", CLIENT_HEADER, DRAWN_HEADER})


class GrpcProxy(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Handles every call of the inference service.

    Args:
        activator: The activator in which requests wait.
        servers: host:port of the gRPC service of every server, by name; may change.
    """

    def __init__(self, activator: Activator, servers: Mapping[str, str]) -> None:
        self._activator = activator
        self._channels = Connections(servers, lambda url: grpc.aio.insecure_channel(url, options=_UNLIMITED))
        self._server: Any = None

    async def start(self, path: str, *, max_message_bytes: int) -> None:
        """Listen on a Unix socket.

        Args:
            path: Path of the socket.
            max_message_bytes: Larger messages are refused.
        """
        options = [("grpc.max_receive_message_length", max_message_bytes), ("grpc.max_send_message_length", -1)]
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers((self,))
        self._server.add_insecure_port(f"unix:{path}")
        await self._server.start()

    async def close(self) -> None:
        """Stop listening, and close the connections to the servers."""
        if self._server is not None:
            await self._server.stop(0)
        for channel in self._channels.opened():
            await channel.close()

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a call; None makes gRPC answer that the method does not exist."""
        path: str = handler_call_details.method
        if not path.startswith(SERVICE):
            return None
        call = path.removeprefix(SERVICE)
        if call == "ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(self._stream)
        if call == "ServerLive":
            return grpc.unary_unary_rpc_method_handler(_live)
        if call == "ServerReady":
            return grpc.unary_unary_rpc_method_handler(_not_ready)
        if call == "ServerMetadata":
            return grpc.unary_unary_rpc_method_handler(self._metadata)
        if call not in _UNARY:
            return None

        async def unary(request: bytes, context: Any) -> bytes:
            return await self._unary(call, request, context)

        return grpc.unary_unary_rpc_method_handler(unary)

    async def _unary(self, call: str, request: bytes, context: Any) -> bytes:
        model, name, known = "", "", False
        asked_way, asked_version = "activator", ""
        try:
            names = read_names(request)
            name = names.name
            model, version = await self._activator.resolve(names.name, names.version)
            await self._activator.access.admit(_token(context), model, _client(context))
            known = self._activator.known(model)
            if call == "ModelReady":
                return is_ready(self._activator.can_serve(model, version))
            if call == "ModelStatistics" and not self._activator.at_once(model):
                await self._abort(
                    context, grpc.StatusCode.INVALID_ARGUMENT, f"requested model '{model}' is not available"
                )
            request = rename(request, model, version)
            if call == "ModelInfer":
                self._activator.recorder.offer(model, CopiedRequest(request, grpc=True))
            step = grpc_step(request) if call == "ModelInfer" and self._activator.router.takes(model) else None
            if step is not None:
                asked = GrpcRequest(request, version, _passed(context), context.time_remaining(), None)
                reply, placed = await ask_grpc_sequence(self._activator.router, model, step, asked, self._channels)
                asked_way, asked_version = placed.way, placed.where.version
                return self._answered(model, reply, asked_way, asked_version)
            split = self._activator.splits.get(model) if call == "ModelInfer" else None
            if split is not None:
                drawn = _said(context, DRAWN_HEADER)
                asked = GrpcRequest(
                    request, version, _passed(context), context.time_remaining(), int(drawn) if drawn else None
                )
                new = split.version(Arm.NEW)
                tried = await ask_grpc(
                    split,
                    asked,
                    self._activator,
                    self._channels,
                    lambda copy: self._count(model, _code(copy), "shadow", new),
                )
                asked_way, asked_version = tried.way, split.version(tried.arm)
                return self._answered(model, tried.reply, asked_way, asked_version)
            async with self._activator.acquire(model, len(request)) as server:
                asked_version = self._activator.open_routes.version(model, version)
                method = self._channels[server].unary_unary(SERVICE + call)
                answer = method(request, metadata=_passed(context), timeout=context.time_remaining())
                try:
                    response: bytes = await answer
                except grpc.aio.AioRpcError as error:
                    if is_lost(error.details() or ""):
                        raise lost_error(model) from error
                    raise
                self._count(model, "OK", asked_way, asked_version)
                return response
        except grpc.aio.AioRpcError as error:
            self._count(model if known else _UNKNOWN, error.code().name, asked_way, asked_version)
            await context.abort(error.code(), error.details(), tuple(error.trailing_metadata()))
            raise AssertionError("unreachable") from error
        except ControlPlaneError as error:
            code, details, trailers = _refusal(error, name)
            self._count(model if known else _UNKNOWN, code.name, asked_way, asked_version)
            await context.abort(code, details, trailers)
            raise AssertionError("unreachable") from error

    def _answered(self, model: str, reply: GrpcReply, way: str, version: str) -> bytes:
        if reply.error is not None:
            raise reply.error
        self._count(model, "OK", way, version)
        return reply.message

    def _count(self, model: str, code: str, way: str, version: str) -> None:
        self._activator.stats.answered(RequestLabels(model, way, version, "grpc", code))

    async def _metadata(self, request: bytes, context: Any) -> bytes:
        """Return the metadata of the first server that answers; all servers are alike."""
        try:
            await self._activator.access.admit(_token(context), None, _client(context))
        except ControlPlaneError as error:
            code, details, trailers = _refusal(error, "")
            await context.abort(code, details, trailers)
        for channel in self._channels.values():
            try:
                response: bytes = await channel.unary_unary(SERVICE + "ServerMetadata")(request, timeout=5.0)
            except grpc.aio.AioRpcError:
                continue
            return response
        await context.abort(grpc.StatusCode.UNAVAILABLE, "no Triton server can be reached")
        raise AssertionError("unreachable")

    async def _abort(self, context: Any, code: Any, details: str) -> NoReturn:
        await context.abort(code, details)
        raise AssertionError("unreachable")

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Send each message of a stream to a server of its model, and yield the answers."""
        stream = _Stream(
            self._activator,
            self._channels,
            _passed(context),
            context.time_remaining(),
            lambda model: self._activator.access.admit(_token(context), model, _client(context)),
        )
        try:
            async for response in stream.run(requests):
                yield response
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details(), tuple(error.trailing_metadata()))


@dataclass
class _Upstream:
    """A stream to one model on one server, and the task that reads it."""

    call: Any
    writing: asyncio.Lock
    reader: "asyncio.Task[None]"
    closer: "asyncio.Task[None]"
    open: bool = True


class _Stream:
    """One client's stream, and its upstream streams: one for every model and server.

    An open stream prevents the unload of a model that was used on it (Triton 2.51: the model stays UNLOADING). So each
    upstream stream ends when its model is drained, after its last answer, and the next request opens another one.
    """

    def __init__(
        self,
        activator: Activator,
        channels: Mapping[str, Any],
        metadata: Sequence[tuple[str, Any]],
        timeout: float | None,
        admit: Callable[[str], Awaitable[None]],
    ) -> None:
        self._admit = admit
        self._activator = activator
        self._channels = channels
        self._metadata = metadata
        self._timeout = timeout
        self._answers: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue(maxsize=64)
        self._upstreams: dict[tuple[str, str], _Upstream] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the answers."""
        feeding = self._task(self._feed(requests))
        try:
            while (answer := await self._answers.get()) is not None:
                if isinstance(answer, BaseException):
                    raise answer
                yield answer
        finally:
            tasks = [feeding, *self._tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _feed(self, requests: AsyncIterator[bytes]) -> None:
        try:
            async for request in requests:
                names = Names("")
                try:
                    names = read_names(request)
                    await self._send(request, names)
                except ControlPlaneError as error:
                    await self._answers.put(stream_error(_refusal(error, names.name)[1], names.id))
            readers = [upstream.reader for upstream in self._upstreams.values()]
            for key in list(self._upstreams):
                await self._end(key)
            await asyncio.gather(*readers, *(task for task in self._tasks if task.get_name() == _READER))
            await self._answers.put(None)
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            await self._answers.put(error)

    async def _send(self, request: bytes, names: Names) -> None:
        model, version = await self._activator.resolve(names.name, names.version)
        await self._admit(model)
        request = rename(request, model, version)
        router = self._activator.router
        step = grpc_step(request) if router.takes(model) else None
        if step is None:
            async with self._activator.acquire(model, len(request)) as server:
                await self._write(server, model, request)
        else:
            # A rollout measures no streams, so the new version gets no sequence that begins here.
            async with router.acquire(model, len(request), step, version, may_draw=False) as placed:
                name = placed.where.triton_name
                await self._write(placed.where.server, name, rename(request, name, placed.version), model)
        asked_version = self._activator.open_routes.version(model, version)
        self._activator.stats.answered(RequestLabels(model, "activator", asked_version, "grpc-stream", "OK"))

    async def _write(self, server: str, name: str, request: bytes, model: str = "") -> None:
        while True:
            upstream = self._upstreams.get((server, name)) or self._open(server, name, model or name)
            async with upstream.writing:
                if upstream.open:  # it may have ended while this call waited
                    await upstream.call.write(request)
                    return

    def _open(self, server: str, name: str, model: str) -> _Upstream:
        key = (server, name)
        method = self._channels[server].stream_stream(SERVICE + "ModelStreamInfer")
        call = method(metadata=self._metadata, timeout=self._timeout)
        reader = self._task(self._read(server, name, model, call), _READER)
        upstream = _Upstream(call, asyncio.Lock(), reader, self._task(self._end_withdrawn(server, name)))
        self._upstreams[key] = upstream
        reader.add_done_callback(lambda _: self._forget(key, upstream))
        return upstream

    def _forget(self, key: tuple[str, str], upstream: _Upstream) -> None:
        upstream.open = False
        upstream.closer.cancel()
        if self._upstreams.get(key) is upstream:
            del self._upstreams[key]

    async def _end_withdrawn(self, server: str, model: str) -> None:
        await self._activator.open_routes.wait_closed(server, model)
        # Later requests of an open sequence must not overtake earlier ones on another stream.
        await self._activator.router.sequences.wait_ended(server, model)
        await self._end((server, model))

    async def _end(self, key: tuple[str, str]) -> None:
        """Close a stream for writing; requests that were sent are still answered."""
        upstream = self._upstreams.pop(key, None)
        if upstream is not None:
            async with upstream.writing:
                upstream.open = False
                await upstream.call.done_writing()

    async def _read(self, server: str, name: str, model: str, call: Any) -> None:
        try:
            # The stream counts as in flight until it has ended: a drain waits for that.
            with self._activator.open_routes.used(server, name):
                try:
                    async for answer in call:
                        await self._answers.put(answer if name == model else rename_stream_answer(answer, model))
                finally:
                    call.cancel()
        except grpc.aio.AioRpcError as error:
            await self._answers.put(error)

    def _task(self, work: Coroutine[Any, Any, None], name: str | None = None) -> "asyncio.Task[None]":
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _code(reply: GrpcReply) -> str:
    return reply.error.code().name if reply.error is not None else "OK"


def _refusal(error: ControlPlaneError, name: str) -> tuple[Any, str, tuple[tuple[str, str], ...]]:
    """Return the gRPC code, the message and the trailers for an error that kept a request from Triton."""
    if isinstance(error, NotFoundError):
        return grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name[:_SHOWN]}' is not found", ()
    if isinstance(error, InvalidInputError):
        return grpc.StatusCode.INVALID_ARGUMENT, error.message, ()
    if isinstance(error, TooManyWaitingError):
        return grpc.StatusCode.RESOURCE_EXHAUSTED, error.message, (("retry-after", str(RETRY_AFTER_SECONDS)),)
    if isinstance(error, RateLimitedError):
        wait = str(error.details.get("retry_after_seconds", RETRY_AFTER_SECONDS))
        return grpc.StatusCode.RESOURCE_EXHAUSTED, error.message, (("retry-after", wait),)
    if isinstance(error, UnauthenticatedError):
        return grpc.StatusCode.UNAUTHENTICATED, error.message, ()
    if isinstance(error, ForbiddenError):
        return grpc.StatusCode.PERMISSION_DENIED, error.message, ()
    seconds = error.details.get("retry_after_seconds")
    return grpc.StatusCode.UNAVAILABLE, error.message, (("retry-after", str(seconds)),) if seconds else ()


def _token(context: Any) -> str | None:
    return bearer([str(value) for key, value in context.invocation_metadata() or () if key == "authorization"])


def _client(context: Any) -> str:
    return _said(context, CLIENT_HEADER) or ""


def _said(context: Any, name: str) -> str | None:
    return next((str(value) for key, value in context.invocation_metadata() or () if key == name), None)


def _passed(context: Any) -> list[tuple[str, Any]]:
    return [
        (key, value)
        for key, value in context.invocation_metadata() or ()
        if not key.startswith(_OURS) and key not in _NOT_PASSED
    ]


async def _live(request: bytes, context: Any) -> bytes:  # noqa: ARG001 - gRPC's
    return b"\x08\x01"  # ServerLiveResponse(live=true): the gateway is live regardless of the servers


async def _not_ready(request: bytes, context: Any) -> bytes:  # noqa: ARG001 - gRPC's
    return b""
