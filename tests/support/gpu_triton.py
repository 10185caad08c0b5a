"""Simulated GPUs for a whole control plane: everything except the GPUs is real.

The stand-in for NVIDIA's library (`tests.support.nvml`) defines the GPUs. A gRPC endpoint in front of a real Triton
accepts or refuses `KIND_GPU` like a Triton on such a machine, with the same error messages; it runs the model on the
CPU and reports the configuration that it received. It writes the GPU memory of the models to the stand-in's file: by
process id of the real backend processes, or only as the total in use.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from tritonclient.grpc import model_config_pb2, service_pb2_grpc

from controlplane.domain.devices import DeviceKind
from controlplane.gpu.base import DeviceReading
from controlplane.triton.embedded.server import EmbeddedTriton
from tests.support.nvml import GIB, Machine, gpu
from tests.support.nvml_reading import Reader

Kind = model_config_pb2.ModelInstanceGroup.Kind
_UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
_FORWARDED = (
    "ServerLive",
    "ServerReady",
    "ServerMetadata",
    "ModelReady",
    "ModelMetadata",
    "ModelInfer",
    "ModelStatistics",
    "RepositoryIndex",
)


class ReadGpus:
    """Reads the stand-in's GPUs with the production code, in a process that has the library in its path."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._lock = threading.Lock()

    def read(self) -> tuple[DeviceReading, ...]:
        with self._lock:  # the process answers one request at a time
            return tuple(_reading(values) for values in self._reader.read().values())

    def close(self) -> None:
        self._reader.end()


def _reading(values: Mapping[str, Any]) -> DeviceReading:
    processes, reasons = values["processes"], values["throttle_reasons"]
    return DeviceReading(
        **{
            **values,
            "kind": DeviceKind(values["kind"]),
            "processes": None if processes is None else {int(pid): size for pid, size in processes.items()},
            "throttle_reasons": None if reasons is None else tuple(reasons),
        }
    )


@dataclass
class GpuTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The endpoint in front of the real Triton, and the GPUs.

    Attributes:
        embedded: The real Triton.
        machine: The stand-in's file.
        products: The GPUs' names, by number.
        bytes_of: GPU memory of an instance of a model, by Triton name.
        by_process: Whether the driver reports memory by process.
        lost: GPUs that fell off the bus.
        loads: The configurations that were sent, oldest first, by Triton name.
        url: Its gRPC address.
    """

    embedded: EmbeddedTriton
    machine: Machine
    products: tuple[str, ...] = ("NVIDIA H200", "NVIDIA H200")
    bytes_of: dict[str, int] = field(default_factory=dict)
    by_process: bool = True
    lost: set[int] = field(default_factory=set)
    loads: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    url: str = ""
    _groups: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    _homes: dict[int, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _real: Any = None

    def __post_init__(self) -> None:
        for name in _FORWARDED:
            setattr(self, name, self._forward(name))

    def gpus_of(self, name: str) -> list[int]:
        """Return the GPUs that a loaded model runs on."""
        return sorted({number for group in self._groups.get(name, []) for number in group.get("gpus", [])})

    def requested_groups(self, name: str) -> list[dict[str, Any]]:
        """Return the instance groups of the latest load of a model."""
        groups: list[dict[str, Any]] = self.loads[name][-1]["instance_group"]
        return groups

    def update(self) -> None:
        """Write the present memory use of the GPUs to the stand-in's file."""
        with self._lock:
            self._update()

    def _update(self) -> None:
        used = dict.fromkeys(range(len(self.products)), GIB)
        processes: dict[int, list[str]] = {number: [] for number in used}
        for name in list(self._groups):
            size = self.bytes_of.get(name, GIB)
            for pid in self.embedded.processes_of(name):
                if (number := self._homes.get(pid)) is not None:
                    used[number] += size
                    processes[number].append(f"{pid}:{size}")
        lines: dict[str, object] = {"count": len(self.products)}
        for number, product in enumerate(self.products):
            listed = ",".join(processes[number]) if self.by_process else ""
            lines |= gpu(number, name=product, used=used[number], total=80 * GIB, compute=listed)
            if number in self.lost:
                lines[f"gpu{number}__lost"] = 15
        self.machine.has(**lines)

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service's name
        name, config = request.model_name, json.loads(request.parameters["config"].string_param)
        self.loads.setdefault(name, []).append(config)
        groups = [await self._resolved(name, position, group, context) for position, group in
                  enumerate(config.get("instance_group") or [{}])]  # fmt: skip
        here = [{"count": one["count"] * max(len(one["gpus"]), 1), "kind": "KIND_CPU"} for one in groups]
        request.parameters["config"].string_param = json.dumps({**config, "instance_group": here})
        answer = await self._call("RepositoryModelLoad", request, context)
        self._groups[name] = groups
        gpus = self.gpus_of(name)
        new = sorted(set(self.embedded.processes_of(name)) - self._homes.keys())
        for position, pid in enumerate(new if gpus else ()):
            self._homes[pid] = gpus[position % len(gpus)]  # a process stays on the GPU where it was started
        self.update()
        return answer

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = await self._call("RepositoryModelUnload", request, context)
        self.update()
        return answer

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = await self._call("ModelConfig", request, context)
        if request.name in self._groups:
            del answer.config.instance_group[:]
            answer.config.instance_group.extend(
                model_config_pb2.ModelInstanceGroup(**{**group, "kind": Kind.Value(group["kind"])})
                for group in self._groups[request.name]
            )
        return answer

    async def _resolved(self, name: str, position: int, group: dict[str, Any], context: Any) -> dict[str, Any]:
        """Return the instance group as a Triton on such a machine resolves it."""
        kind, gpus = group.get("kind", "KIND_AUTO"), group.get("gpus", [])
        there = [number for number in range(len(self.products)) if number not in self.lost]
        if kind == "KIND_AUTO":
            kind = "KIND_GPU" if there else "KIND_CPU"
        label = f"instance group {name}_{position} of model {name}"
        if kind == "KIND_GPU" and not there:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"{label} has kind KIND_GPU but no GPUs are available"
            )
        for number in gpus:
            if number not in there:
                known = " ".join(map(str, there))
                words = f"{label} specifies invalid or unsupported gpu id {number}. GPUs with at least the minimum "
                words += f"required CUDA compute compatibility of 6.000000 are: {known}"
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, words)
        if kind == "KIND_GPU" and not gpus:
            gpus = there
        return {"name": f"{name}_{position}", "kind": kind, "count": group.get("count", 1), "gpus": gpus}

    def _forward(self, method: str) -> Any:
        async def forward(request: Any, context: Any) -> Any:
            answer = await self._call(method, request, context)
            if method != "ModelInfer":
                await asyncio.to_thread(self.update)
            return answer

        return forward

    async def _call(self, method: str, request: Any, context: Any) -> Any:
        # The header that opens model control is passed on.
        shown = [(key, value) for key, value in context.invocation_metadata() if key.startswith("triton-grpc-protocol")]
        try:
            return await getattr(self._real, method)(request, metadata=shown)
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")


@asynccontextmanager
async def gpu_triton(embedded: EmbeddedTriton, machine: Machine, **options: Any) -> AsyncIterator[GpuTriton]:
    """Stand in front of a Triton that runs."""
    endpoint = GpuTriton(embedded, machine, **options)
    endpoint.update()
    server = grpc.aio.server(options=_UNLIMITED)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(endpoint, server)
    endpoint.url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    async with grpc.aio.insecure_channel(embedded.grpc_url, options=_UNLIMITED) as channel:
        endpoint._real = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        await server.start()
        try:
            yield endpoint
        finally:
            await server.stop(0)
