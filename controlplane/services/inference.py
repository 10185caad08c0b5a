"""Inference through the control plane, as a convenience. Programs use Triton's own ports."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from controlplane.domain.names import validate_model_name
from controlplane.domain.samples import Tensors
from controlplane.domain.signature import Signature
from controlplane.domain.states import DeploymentStatus, Phase, ServerDeploymentStatus
from controlplane.errors import ConflictError, NotFoundError, TritonUnavailableError
from controlplane.gateway.gateway import Gateway
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.registry import Registry
from controlplane.servers.server_set import ServerSet
from controlplane.services.tensors import InputTensor, from_array, read_inputs


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """An output as it is sent to the client."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """Triton's response, with the version, the server and the duration in seconds."""

    version: int
    server: str
    seconds: float
    tensors: Tensors

    @property
    def bytes(self) -> int:
        """Return the size of the outputs in memory."""
        return sum(array.nbytes for array in self.tensors.values())

    def written(self) -> list[OutputTensor]:
        """Return the outputs in the form of the JSON response."""
        outputs = []
        for name, array in self.tensors.items():
            datatype, data = from_array(array)
            outputs.append(OutputTensor(name, datatype, list(array.shape), data))
        return outputs


class Inference:
    """Sends inference requests to deployed models."""

    def __init__(
        self,
        registry: Registry,
        reconciler: Reconciler,
        servers: ServerSet,
        gateway: Gateway | None = None,
    ) -> None:
        self._gateway = gateway
        self._registry = registry
        self._reconciler = reconciler
        self._servers = servers

    async def infer(
        self,
        model: str,
        inputs: Sequence[InputTensor],
        *,
        outputs: Sequence[str] | None,
        version: int | None,
        timeout_seconds: float,
    ) -> Answer:
        """Send an inference request to a model.

        Raises:
            NotFoundError: The model is not deployed.
            ConflictError: No version is active, or the requested version is not loaded.
            GatewayError: It is not loaded, and cannot be.
            InvalidInputError: The inputs do not match the signature.
            InferenceError: Triton refused or failed.
            TritonTimeoutError: Triton did not answer in time.
        """
        validate_model_name(model)
        status = self._reconciler.status(model)
        if status is None:
            await asyncio.to_thread(self._registry.deployments.get, model)
            raise ConflictError(f"{model!r} is deployed but has not been observed yet; try again", model=model)
        if self._gateway is not None and version is None and status.phase is Phase.UNLOADED:
            status = await self._loaded(model, self._gateway, timeout_seconds) or status
        where = _choose(model, status, version)
        answering = version if version is not None else where.serving_version
        assert answering is not None
        manifest = await asyncio.to_thread(self._registry.manifest, model, answering)
        if any(isinstance(one.data, np.ndarray) for one in inputs):  # a large request
            tensors = await asyncio.to_thread(read_inputs, inputs, manifest.signature)
        else:
            tensors = read_inputs(inputs, manifest.signature)
        _check_outputs(outputs, manifest.signature)
        server = self._servers.find(where.server)
        if server is None:
            raise TritonUnavailableError(f"server {where.server!r} is not managed by this instance")
        if why := self._reconciler.withheld(model, server.name):
            raise TritonUnavailableError(
                f"{model} on {server.name} does not accept requests now: {why}; try again", model=model
            )
        started = time.perf_counter()
        answer, answered_by = await server.client.infer(
            model,
            tensors,
            version=version,
            outputs=list(outputs) if outputs is not None else None,
            timeout=timeout_seconds,
        )
        seconds = time.perf_counter() - started
        return Answer(answered_by, server.name, seconds, answer)

    async def _loaded(self, model: str, gateway: Gateway, timeout_seconds: float) -> DeploymentStatus | None:
        """Have the gateway load a model, and return its status afterwards; None if it must not be loaded."""
        if not gateway.activator.can_serve(model, ""):
            return None
        try:
            async with asyncio.timeout(timeout_seconds), gateway.activator.acquire(model, 0):
                return self._reconciler.status(model)
        except TimeoutError:
            return self._reconciler.status(model)


def _choose(model: str, status: DeploymentStatus, version: int | None) -> ServerDeploymentStatus:
    for server in status.servers:
        if version is None and server.serving_version is not None:
            return server
        if version is not None and version in server.loaded_versions:
            return server
    if version is None:
        raise ConflictError(
            f"no version of {model!r} is active now: it is {status.phase.value}"
            + (f" ({status.message})" if status.message else ""),
            model=model,
            phase=status.phase.value,
        )
    loaded = sorted({number for server in status.servers for number in server.loaded_versions})
    raise ConflictError(
        f"{model}:{version} is not loaded; loaded versions: {', '.join(map(str, loaded)) or 'none'}",
        model=model,
        version=version,
        loaded=loaded,
    )


def _check_outputs(outputs: Sequence[str] | None, signature: Signature | None) -> None:
    if outputs is None or signature is None:
        return
    known = [spec.name for spec in signature.outputs]
    for name in outputs:
        if name not in known:
            raise NotFoundError(f"unknown output {name!r}; the outputs are {', '.join(known)}", output=name)
