"""Client of Triton's gRPC API.

Model control never uses HTTP: there a load occupies one of the server's workers until it finishes, and inference
stalls. Every call has a deadline: a load whose Python stub cannot start never returns.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from controlplane import tracing
from controlplane.domain.arrays import Array
from controlplane.domain.samples import Tensors
from controlplane.domain.states import LoadedVersion
from controlplane.errors import (
    InferenceError,
    LoadRefusedError,
    NotFoundError,
    TritonError,
    TritonTimeoutError,
    TritonUnavailableError,
)
from controlplane.settings import TritonSettings
from controlplane.triton.model_config import message_to_json
from controlplane.triton.statistics import VersionCounters, VersionKey, parse_statistics
from controlplane.triton.streams import StreamFailedError, as_sequence, decoupled, joined, stream
from controlplane.triton.tensors import to_request

logger = logging.getLogger(__name__)

_Processes = Callable[[str], Sequence[int]]

# Tensors of any size. Reconnecting is quick because an embedded server restarts within a second of its end; gRPC's own
# back-off would wait up to two minutes.
_CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    # Despite its name, this is the time limit of one connection attempt.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.lb_policy_name", "pick_first"),
    # A separate connection, so that closing one client cannot disturb another.
    ("grpc.use_local_subchannel_pool", 1),
]
CONTROL_HEADER = "tritonctl-key"
"""Header name in ``--http-restricted-api`` and ``--grpc-restricted-protocol`` of every server under our control."""

CONTROL_METADATA = f"triton-grpc-protocol-{CONTROL_HEADER}"
"""The header over gRPC, with Triton's prefix (docs/customization_guide/inference_protocols.md of its server)."""

_RESTRICTED = "This protocol is restricted"
_VANISHED = "failed to stat file"
_INDEX_ATTEMPTS = 30
_ORPHAN_SECONDS = 2.0
_GONE = frozenset({"UNAVAILABLE", "UNKNOWN", ""})
_TRACEBACK = re.compile(r"\s*\n+At:\n.*", re.DOTALL)
_REQUEST_ID = re.compile(r"\[request id: [^\]]*\] ")
_REFUSAL = re.compile(r"^failed to load '[^']*', |^load failed for model '[^']*': ")


@dataclass(frozen=True, slots=True)
class TritonTimeouts:
    """Deadlines of calls, in seconds."""

    request_seconds: float = 10.0
    load_seconds: float = 600.0
    unload_seconds: float = 60.0

    @classmethod
    def of(cls, settings: TritonSettings) -> Self:
        """Return the deadlines from the settings."""
        return cls(settings.request_timeout_seconds, settings.load_timeout_seconds, settings.unload_timeout_seconds)


class TritonClient:
    """One server's control and inference API.

    The connection belongs to the event loop of the first call; a call from another loop opens a new connection.

    Args:
        name: The server's name, for messages.
        grpc_url: host:port.
        timeouts: Deadlines.
        processes: For a local server: returns the process ids of a model's instances. An unload then waits until these
            processes have ended, because only then is their memory free.
        log_tail: For a local server: returns the end of its log, for errors without a cause.
        control_key: The key that the server requires for model control, if it restricts it.
    """

    def __init__(
        self,
        name: str,
        grpc_url: str,
        *,
        timeouts: TritonTimeouts | None = None,
        processes: _Processes | None = None,
        log_tail: Callable[[], str] | None = None,
        control_key: str | None = None,
    ) -> None:
        self.name = name
        self.grpc_url = grpc_url
        self.timeouts = timeouts or TritonTimeouts()
        self._processes = processes
        self._log_tail = log_tail
        self._control = () if control_key is None else ((CONTROL_METADATA, control_key),)
        self._channel: grpc.aio.Channel | None = None
        self._service: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        channel, self._channel = self._channel, None
        if channel is not None and self._loop is asyncio.get_running_loop():
            await channel.close()

    async def server_live(self) -> bool:
        """Return whether the server responds and reports that it is live."""
        try:
            return bool((await self._call("ServerLive", service_pb2.ServerLiveRequest(), "health")).live)
        except (TritonUnavailableError, TritonTimeoutError):
            return False

    async def server_metadata(self) -> str:
        """Return Triton's version.

        Raises:
            TritonUnavailableError: The server is unreachable.
            TritonTimeoutError: No response before the deadline.
        """
        return str((await self._metadata()).version)

    async def server_name(self) -> str:
        """Return the server's own name, its ``--id``."""
        return str((await self._metadata()).name)

    async def index(self) -> tuple[LoadedVersion, ...]:
        """Return all entries of the repository index that have a version: loaded, loading, unloaded, failed.

        A model on disk that was never loaded has neither version nor state and is excluded.

        Raises:
            TritonUnavailableError: The server is unreachable.
            TritonTimeoutError: No response before the deadline.
            TritonError: Triton refused the call.
        """
        response = await self._index()
        return tuple(
            LoadedVersion(model=model.name, version=int(model.version), state=model.state, reason=model.reason)
            for model in response.models
            if model.version.isdigit()
        )

    async def _index(self) -> Any:
        # Triton lists the repository's folder, then reads each entry. An entry that is staged or removed in between
        # makes the whole call fail, although nothing is wrong.
        for attempt in range(_INDEX_ATTEMPTS):
            try:
                return await self._call("RepositoryIndex", service_pb2.RepositoryIndexRequest(), "repository index")
            except _TritonSaidNo as error:
                if _VANISHED not in str(error) or attempt + 1 == _INDEX_ATTEMPTS:
                    raise TritonError(f"{self.name} did not return its model index: {error}") from error
        raise AssertionError("not reached")

    async def model_config(self, name: str, version: int | None = None) -> dict[str, Any]:
        """Return the configuration with which a loaded model runs, in Triton's JSON form.

        Raises:
            NotFoundError: The model is not loaded.
        """
        request = service_pb2.ModelConfigRequest(name=name, version=_text(version))
        try:
            response = await self._call("ModelConfig", request, f"configuration of {name}")
        except _TritonSaidNo as error:
            raise NotFoundError(f"{name} is not loaded on {self.name}: {error}", model=name) from error
        return message_to_json(response.config)

    async def statistics(self) -> dict[VersionKey, VersionCounters]:
        """Return the request counters of every loaded version, by Triton name and version.

        Raises:
            TritonUnavailableError: The server is unreachable.
            TritonTimeoutError: No response before the deadline.
            TritonError: Triton refused the call.
        """
        try:
            return parse_statistics(
                await self._call("ModelStatistics", service_pb2.ModelStatisticsRequest(), "statistics")
            )
        except _TritonSaidNo as error:
            raise TritonError(f"{self.name} did not return its statistics: {error}") from error

    async def ready(self, name: str, version: int | None = None) -> bool:
        """Return whether Triton reports a model as ready. Not reliable: a model with a dead stub stays ready."""
        request = service_pb2.ModelReadyRequest(name=name, version=_text(version))
        try:
            return bool((await self._call("ModelReady", request, f"readiness of {name}")).ready)
        except _TritonSaidNo:
            return False

    async def load(self, name: str, config: Mapping[str, Any]) -> None:
        """Load a model, or reload it with another configuration, and wait until it is loaded.

        The whole configuration is always sent: an override persists until the next unload, so a load without one would
        use the last override that was sent.

        Raises:
            LoadRefusedError: Triton refused the load; the loaded versions continue to serve.
            TritonTimeoutError: The deadline passed. Triton cannot cancel a load, so it may still finish later.
            TritonUnavailableError: The server is unreachable.
        """
        request = service_pb2.RepositoryModelLoadRequest(model_name=name)
        request.parameters["config"].string_param = json.dumps(config)
        try:
            await self._call("RepositoryModelLoad", request, f"load of {name}", self.timeouts.load_seconds)
        except _TritonSaidNo as error:
            raise self._refused(name, str(error)) from error

    async def unload(self, name: str) -> None:
        """Unload every version of a model and wait until it, and its processes where known, are gone.

        Triton answers an unload at once; the instances end later, after the last request in flight. Unloading a model
        that is not loaded succeeds.

        Raises:
            TritonTimeoutError: The model was still present at the deadline.
            TritonUnavailableError: The server is unreachable.
            TritonError: Triton refused the call.
        """
        deadline = time.monotonic() + self.timeouts.unload_seconds
        request = service_pb2.RepositoryModelUnloadRequest(model_name=name)
        try:
            await self._call("RepositoryModelUnload", request, f"unload of {name}", self.timeouts.unload_seconds)
        except _TritonSaidNo as error:
            raise TritonError(f"{self.name} refused to unload {name}: {error}", model=name) from error
        pause, empty_since = 0.01, 0.0
        while True:
            states = await self._states(name)
            processes = await asyncio.to_thread(self._processes, name) if self._processes else ()
            if not states and not processes:
                return
            # If a model's stub died and an inference failed on it, the model stays UNLOADING permanently (Triton 2.51).
            # Its process is gone, its memory is free, and it can be loaded again, so it counts as unloaded.
            if processes or self._processes is None or set(states.values()) != {"UNLOADING"}:
                empty_since = 0.0
            elif not empty_since:
                empty_since = time.monotonic()
            elif time.monotonic() - empty_since > _ORPHAN_SECONDS:
                logger.warning(
                    "%s on %s stays UNLOADING although its processes have ended; continuing", name, self.name
                )
                return
            if time.monotonic() > deadline:
                left = ", ".join(f"version {version} {state}" for version, state in states.items())
                if processes:
                    left += f"{', ' if left else ''}processes {list(processes)}"
                raise TritonTimeoutError(
                    f"{name} is still on {self.name} after {self.timeouts.unload_seconds:g} s: {left}", model=name
                )
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.1)

    async def infer(
        self,
        name: str,
        inputs: Tensors,
        *,
        version: int | None = None,
        outputs: Sequence[str] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the deadline goes to the server with the call
        config: Mapping[str, Any] | None = None,
    ) -> tuple[dict[str, Array], int]:
        """Send an inference request to a model.

        Args:
            name: The model's name in Triton.
            inputs: Arrays by input name, in the shapes of the model's signature.
            version: The version; None uses the highest loaded version.
            outputs: The requested outputs; None requests all.
            timeout: Deadline in seconds; default `TritonTimeouts.request_seconds`.
            config: The result of `model_config` if the caller has it; otherwise it is requested first.

        A request to a model with sequence batching is a sequence of its own. The responses of a decoupled model are
        joined (see `streams.joined`).

        Returns:
            Arrays by output name, in the shapes of the signature, and the version that answered.

        Raises:
            InferenceError: Triton refused the request or failed, the model is not loaded, or an input does not match.
            TritonTimeoutError: No response before the deadline.
            TritonUnavailableError: The server is unreachable.
        """
        try:
            known = config if config is not None else await self.model_config(name, version)
        except NotFoundError as error:
            raise InferenceError(error.message, model=name, version=version) from error
        request = to_request(name, version, inputs, outputs, known)
        as_sequence(request, known)
        try:
            method = "ModelStreamInfer" if decoupled(known) else "ModelInfer"
            responses = await self._call(method, request, f"inference on {name}", timeout)
        except _TritonSaidNo as error:
            raise InferenceError(
                f"{self.name} failed an inference on {name}{f':{version}' if version else ''}: "
                f"{_TRACEBACK.sub('', _REQUEST_ID.sub('', str(error)))}",
                model=name,
                version=version,
            ) from error
        return joined(responses, known, name)

    async def _metadata(self) -> Any:
        return await self._call("ServerMetadata", service_pb2.ServerMetadataRequest(), "metadata")

    async def _states(self, name: str) -> dict[int, str]:
        """Return the states of a model's versions that are not unloaded."""
        return {
            entry.version: entry.state
            for entry in await self.index()
            if entry.model == name and entry.state not in _GONE
        }

    def _refused(self, name: str, raw: str) -> LoadRefusedError:
        reason = _TRACEBACK.sub("", _REFUSAL.sub("", raw)).strip()
        details: dict[str, Any] = {"model": name, "reason": raw}
        if "failed to poll" in raw:
            # Triton's message for an invalid configuration has no cause; only its log contains it.
            if self._log_tail is None:
                reason += " (the cause is in that server's log)"
            else:
                causes = [line for line in self._log_tail().splitlines() if line.startswith("E")]
                reason += f": {causes[-1]}" if causes else ""
        return LoadRefusedError(f"{self.name} refused to load {name}: {reason}", **details)

    def _stub(self) -> Any:
        loop = asyncio.get_running_loop()
        if self._channel is None or self._loop is not loop:
            self._channel = grpc.aio.insecure_channel(self.grpc_url, options=_CHANNEL)
            self._loop = loop
            self._service = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        return self._service

    async def _call(self, method: str, request: Any, what: str, limit: float | None = None) -> Any:
        """Make one call with a deadline.

        Raises:
            TritonTimeoutError: The deadline passed.
            TritonUnavailableError: The connection failed.
            _TritonSaidNo: Triton refused.
        """
        limit = self.timeouts.request_seconds if limit is None else limit
        try:
            # Only restricted calls carry the key, to limit its exposure.
            shown = self._control if method.startswith("Repository") else ()
            with tracing.below(f"triton {method}", server=self.name, what=what):
                if method == "ModelStreamInfer":
                    return await stream(self._stub(), request, limit)
                return await getattr(self._stub(), method)(request, timeout=limit, metadata=shown)
        except StreamFailedError as error:
            raise _TritonSaidNo(str(error)) from error
        except grpc.aio.AioRpcError as error:
            reason = error.details() or error.code().name
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TritonTimeoutError(
                    f"{self.name} ({self.grpc_url}) did not answer in {limit:g} s: {what}", seconds=limit
                ) from error
            if reason.startswith(_RESTRICTED):
                wrong = "it was started with another control key" if self._control else "it requires a control key"
                raise TritonUnavailableError(
                    f"{self.name} ({self.grpc_url}) refuses control requests: {wrong}; set control_key of this "
                    "server in CONTROLPLANE_TRITON__SERVERS"
                ) from error
            if error.code() is grpc.StatusCode.UNAVAILABLE and not _is_about_model(reason):
                raise TritonUnavailableError(
                    f"{self.name} ({self.grpc_url}) cannot be reached for the {what}: {reason}"
                ) from error
            raise _TritonSaidNo(reason) from error


class _TritonSaidNo(Exception):  # noqa: N818 - never leaves this module
    """Triton refused a call; each method documents the meaning."""


def _is_about_model(reason: str) -> bool:
    """Return whether UNAVAILABLE is Triton's error about a model rather than gRPC's error about the connection."""
    return reason.startswith("Request for unknown model") or "is not ready" in reason


def _text(version: int | None) -> str:
    return "" if version is None else str(version)
