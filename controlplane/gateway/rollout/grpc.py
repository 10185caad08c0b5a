"""Handles gRPC requests during a rollout: sends them to either version, passes on its answer, compares both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from controlplane.domain.comparison import compare
from controlplane.domain.names import candidate_name
from controlplane.domain.tolerance import OutputComparison
from controlplane.gateway.grpc_wire import parameter, rename
from controlplane.gateway.haproxy.config import PIN, SERVICE
from controlplane.gateway.lost import UNKNOWN_MODEL, is_lost, lost_error
from controlplane.gateway.rollout.comparison import Arm
from controlplane.gateway.rollout.http import ReplySpace
from controlplane.gateway.rollout.split import SplitResult, TrafficSplit, tolerances
from controlplane.triton.answers import from_grpc

Metadata = Sequence[tuple[str, Any]]


@dataclass(frozen=True, slots=True)
class GrpcRequest:
    """An inference request of a client.

    Attributes:
        message: The ``ModelInferRequest``, under the model's own name.
        version: The version in it; empty if it names none.
        metadata: The metadata to send with it.
        timeout: The client's deadline in seconds.
        drawn: The size of the sample that HAProxy drew it from, in requests per million; None if it was not drawn.
    """

    message: bytes
    version: str
    metadata: Metadata
    timeout: float | None
    drawn: int | None


@dataclass(frozen=True, slots=True)
class GrpcReply:
    """Triton's answer.

    Attributes:
        message: The ``ModelInferResponse``; empty after an error.
        error: The error; None if there is an answer.
    """

    message: bytes = b""
    error: grpc.aio.AioRpcError | None = None

    @property
    def failed(self) -> bool:
        """Whether it is an error."""
        return self.error is not None

    @property
    def absent(self) -> bool:
        """Whether Triton does not know the model, or cannot be reached."""
        return self.error is not None and (
            UNKNOWN_MODEL in (self.error.details() or "")
            or (self.error.code() is grpc.StatusCode.UNAVAILABLE and "connect" in (self.error.details() or ""))
        )


async def ask_grpc(
    split: TrafficSplit,
    request: GrpcRequest,
    room: ReplySpace,
    channels: Mapping[str, Any],
    copied: Callable[[GrpcReply], None],
) -> SplitResult[GrpcReply]:
    """Send a request to one of the two versions and return its answer.

    Args:
        split: The model's split.
        request: The client's request.
        room: Finds a server for the old version.
        channels: The gRPC services of the servers, by name.
        copied: Called with the new version's answer to a copy of the request.

    Raises:
        ControlPlaneError: The request cannot be sent to the old version, or its server lost the model.
    """
    pinned = pin_grpc(request) or request.version
    named = split.named(pinned)
    model = split.model

    async def ask(arm: Arm) -> GrpcReply:
        if arm is Arm.NEW:
            name = candidate_name(model)
            reply = await send_grpc(channels[split.server()], rename(request.message, name, ""), request)
            if reply.error is not None:
                return GrpcReply(error=renamed_grpc(reply.error, name, model))
            return GrpcReply(rename(reply.message, model, str(split.rollout.version)))
        message = rename(request.message, model, "" if named is Arm.NEW else pinned)
        async with room.acquire(model, len(message)) as server:
            reply = await send_grpc(channels[server], message, request)
        if reply.error is not None and is_lost(reply.error.details() or ""):
            raise lost_error(model) from reply.error  # neither version caused it
        return reply

    def compared(old: GrpcReply, new: GrpcReply) -> tuple[OutputComparison, ...]:
        expected = from_grpc(old.message)
        return compare(from_grpc(new.message), expected, tolerances(split.rollout, expected))

    if pinned and named is None:
        return SplitResult(await ask(Arm.OLD), Arm.OLD, "by-version")
    return await split.answer(named, request.drawn, ask, compared, copied)


async def send_grpc(channel: Any, message: bytes, request: GrpcRequest) -> GrpcReply:
    """Send a message with the metadata and deadline of a request, and return the reply."""
    try:
        answer: bytes = await channel.unary_unary(SERVICE + "ModelInfer")(
            message, metadata=request.metadata, timeout=request.timeout
        )
    except grpc.aio.AioRpcError as error:
        return GrpcReply(error=error)
    return GrpcReply(answer)


def renamed_grpc(error: grpc.aio.AioRpcError, name: str, own: str) -> grpc.aio.AioRpcError:
    """Return the error with the model's own name in its message."""
    words = (error.details() or "").replace(name, own)
    return grpc.aio.AioRpcError(error.code(), error.initial_metadata(), error.trailing_metadata(), words)


def pin_grpc(request: GrpcRequest) -> str:
    """Return the version that a request pins in its metadata or a parameter; empty if it pins none."""
    for key, value in request.metadata:
        if key == PIN:
            return str(value).strip()
    return parameter(request.message, PIN)
