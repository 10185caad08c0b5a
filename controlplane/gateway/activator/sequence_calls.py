"""Sends an inference request of a sequence to its place, and returns the answer under the model's own name."""

import time
from collections.abc import Mapping
from typing import Any

import httpx

from controlplane.gateway.activator.sequence_router import PlacedStep, SequenceRouter
from controlplane.gateway.grpc_wire import rename
from controlplane.gateway.lost import is_lost, lost_error
from controlplane.gateway.rollout.grpc import GrpcReply, GrpcRequest, pin_grpc, renamed_grpc, send_grpc
from controlplane.gateway.rollout.http import HttpReply, HttpRequest, pin_http, renamed_http, send_http
from controlplane.gateway.sequences import SequenceStep


async def ask_http(
    router: SequenceRouter,
    model: str,
    step: SequenceStep,
    request: HttpRequest,
    clients: Mapping[str, httpx.AsyncClient],
) -> tuple[HttpReply, PlacedStep]:
    """Send an HTTP request of a sequence and return the reply, and where it came from.

    Raises:
        ControlPlaneError: The request cannot be sent, or the server lost the model.
        httpx.ConnectError: There is no connection to the server.
    """
    may_draw = True
    while True:
        version = pin_http(request) or request.version
        async with router.acquire(model, len(request.body), step, version, may_draw=may_draw) as placed:
            where, began = placed.where, time.perf_counter()
            try:
                reply = await send_http(clients[where.server], where.triton_name, placed.version, request)
            except httpx.ConnectError:
                router.sequences.forget(where)
                if not where.candidate:
                    raise
                reply = HttpReply(502, (), b'{"error":"the Triton server closed the connection"}')
                absent = True
            else:
                absent = reply.absent
            if where.candidate:
                reply = renamed_http(reply, where.triton_name, model)
        if absent:
            router.sequences.forget(where)
            if where.candidate and step.start:
                may_draw = False
                placed.refused()
                continue
            if is_lost(reply.body[:500].decode(errors="replace")):
                raise lost_error(model)
        placed.measured(failed=reply.failed, seconds=time.perf_counter() - began)
        return reply, placed


async def ask_grpc(
    router: SequenceRouter, model: str, step: SequenceStep, request: GrpcRequest, channels: Mapping[str, Any]
) -> tuple[GrpcReply, PlacedStep]:
    """Send a gRPC request of a sequence and return the reply, and where it came from.

    Raises:
        ControlPlaneError: The request cannot be sent, or the server lost the model.
    """
    may_draw = True
    while True:
        version = pin_grpc(request) or request.version
        async with router.acquire(model, len(request.message), step, version, may_draw=may_draw) as placed:
            where, began = placed.where, time.perf_counter()
            message = rename(request.message, where.triton_name, placed.version)
            reply = await send_grpc(channels[where.server], message, request)
        if reply.absent:
            router.sequences.forget(where)
            if where.candidate and step.start:
                may_draw = False
                placed.refused()
                continue
            if reply.error is not None and is_lost(reply.error.details() or ""):
                raise lost_error(model) from reply.error
        placed.measured(failed=reply.failed, seconds=time.perf_counter() - began)
        if where.candidate and reply.error is not None:
            reply = GrpcReply(error=renamed_grpc(reply.error, where.triton_name, model))
        elif where.candidate:
            reply = GrpcReply(rename(reply.message, model, where.version))
        return reply, placed
