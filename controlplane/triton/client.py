"""Triton's gRPC API, in our terms.

Control never goes over HTTP: there a load holds one of the server's workers until it is done, and inference stalls.
Every call has a deadline: a load whose Python stub cannot start never returns.
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
from controlplane.triton.tensors import from_response, to_request

logger = logging.getLogger(__name__)

_Processes = Callable[[str], Sequence[int]]

# Tensors of any size. Reconnecting is quick because an embedded server is back within a second of its end; gRPC's
# own back-off would make us wait up to two minutes for it.
_CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    # In spite of its name this is how long one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.lb_policy_name", "pick_first"),
    # One connection of our own, so that closing one client cannot disturb another.
    ("grpc.use_local_subchannel_pool", 1),
]
CONTROL_HEADER = "tritonctl-key"
"""The header's name in ``--http-restricted-api`` and ``--grpc-restricted-protocol`` of every server that we control."""

CONTROL_METADATA = f"triton-grpc-protocol-{CONTROL_HEADER}"
"""Triton puts this prefix before the name over gRPC (docs/customization_guide/inference_protocols.md of its server)."""

_RESTRICTED = "This protocol is restricted"
_VANISHED = "failed to stat file"
_INDEX_ATTEMPTS = 10
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
        """Take them from the settings."""
        return cls(settings.request_timeout_seconds, settings.load_timeout_seconds, settings.unload_timeout_seconds)


class TritonClient:
    """One server's control and inference API.

    The connection belongs to the event loop of the first call and is made anew when another loop calls.

    Args:
        name: The server's name, for messages.
        grpc_url: host:port.
        timeouts: Deadlines.
        processes: Where the server is local: process ids of a model's instances. An unload then waits until they
            are gone, because only then their memory is free.
        log_tail: Where the server is local: the end of its log, for refusals that say nothing themselves.
        control_key: What the server wants for model control, where it restricts that.
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
        """Whether it answers and says that it is live."""
        try:
            return bool((await self._call("ServerLive", service_pb2.ServerLiveRequest(), "health")).live)
        except (TritonUnavailableError, TritonTimeoutError):
            return False

    async def server_metadata(self) -> str:
        """Triton's version.

        Raises:
            TritonUnavailableError: Not reachable.
            TritonTimeoutError: No answer in time.
        """
        return str((await self._metadata()).version)

    async def server_name(self) -> str:
        """The server's own name, its ``--id``."""
        return str((await self._metadata()).name)

    async def index(self) -> tuple[LoadedVersion, ...]:
        """Everything the repository index lists with a version: loaded, loading, unloaded, failed.

        A model on disk that was never loaded has neither version nor state and is left out.

        Raises:
            TritonUnavailableError: Not reachable.
            TritonTimeoutError: No answer in time.
            TritonError: Triton refused.
        """
        response = await self._index()
        return tuple(
            LoadedVersion(model=model.name, version=int(model.version), state=model.state, reason=model.reason)
            for model in response.models
            if model.version.isdigit()
        )

    async def _index(self) -> Any:
        # Triton lists the repository's folder, then looks at each entry; what is staged or removed in between fails
        # the whole call, and is no fault of anybody's.
        for attempt in range(_INDEX_ATTEMPTS):
            try:
                return await self._call("RepositoryIndex", service_pb2.RepositoryIndexRequest(), "repository index")
            except _TritonSaidNo as error:
                if _VANISHED not in str(error) or attempt + 1 == _INDEX_ATTEMPTS:
                    raise TritonError(f"{self.name} does not tell what it has: {error}") from error
        raise AssertionError("not reached")

    async def model_config(self, name: str, version: int | None = None) -> dict[str, Any]:
        """The configuration a loaded model runs with, in Triton's JSON form.

        Raises:
            NotFoundError: It is not loaded.
        """
        request = service_pb2.ModelConfigRequest(name=name, version=_text(version))
        try:
            response = await self._call("ModelConfig", request, f"configuration of {name}")
        except _TritonSaidNo as error:
            raise NotFoundError(f"{name} is not loaded on {self.name}: {error}", model=name) from error
        return message_to_json(response.config)

    async def statistics(self) -> dict[VersionKey, VersionCounters]:
        """The request counters of every loaded version, by Triton name and version.

        Raises:
            TritonUnavailableError: Not reachable.
            TritonTimeoutError: No answer in time.
            TritonError: Triton refused.
        """
        try:
            return parse_statistics(
                await self._call("ModelStatistics", service_pb2.ModelStatisticsRequest(), "statistics")
            )
        except _TritonSaidNo as error:
            raise TritonError(f"{self.name} does not tell its statistics: {error}") from error

    async def ready(self, name: str, version: int | None = None) -> bool:
        """Triton's own word for a model. It is no proof: a dead stub leaves it at ready."""
        request = service_pb2.ModelReadyRequest(name=name, version=_text(version))
        try:
            return bool((await self._call("ModelReady", request, f"readiness of {name}")).ready)
        except _TritonSaidNo:
            return False

    async def load(self, name: str, config: Mapping[str, Any]) -> None:
        """Load a model, or bring a loaded one to another configuration, and wait until that is done.

        Always sends the whole configuration: an override sticks until the next unload, so a load without one would
        get whatever was sent last.

        Raises:
            LoadRefusedError: Triton said no; what was serving goes on serving.
            TritonTimeoutError: The deadline passed. Triton cannot cancel a load: it may still be done later.
            TritonUnavailableError: Not reachable.
        """
        request = service_pb2.RepositoryModelLoadRequest(model_name=name)
        request.parameters["config"].string_param = json.dumps(config)
        try:
            await self._call("RepositoryModelLoad", request, f"load of {name}", self.timeouts.load_seconds)
        except _TritonSaidNo as error:
            raise self._refused(name, str(error)) from error

    async def unload(self, name: str) -> None:
        """Unload every version of a model and wait until it, and where known its processes, are gone.

        Triton answers an unload at once; the instances end later, after the last request in flight. Unloading what
        is not loaded succeeds.

        Raises:
            TritonTimeoutError: It was still there at the deadline.
            TritonUnavailableError: Not reachable.
            TritonError: Triton refused.
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
            # After its stub died and an inference failed on it, a model stays UNLOADING for good (Triton 2.51). Its
            # process is gone and its memory free, and it can be loaded again: that is unloaded enough.
            if processes or self._processes is None or set(states.values()) != {"UNLOADING"}:
                empty_since = 0.0
            elif not empty_since:
                empty_since = time.monotonic()
            elif time.monotonic() - empty_since > _ORPHAN_SECONDS:
                logger.warning("%s on %s stays UNLOADING although its processes are gone; going on", name, self.name)
                return
            if time.monotonic() > deadline:
                left = ", ".join(f"version {version} {state}" for version, state in states.items())
                if processes:
                    left += f"{', ' if left else ''}processes {list(processes)}"
                raise TritonTimeoutError(
                    f"{name} is not gone from {self.name} after {self.timeouts.unload_seconds:g} s: {left}", model=name
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
        """Ask a model.

        Args:
            name: The model's name in Triton.
            inputs: Arrays by input name, in the shapes of the model's signature.
            version: The version to ask; None asks the highest that is loaded.
            outputs: The outputs wanted; None asks for all.
            timeout: Deadline in seconds; default `TritonTimeouts.request_seconds`.
            config: What `model_config` says, where the caller has it; else it is asked for first.

        Returns:
            Arrays by output name, in the shapes of the signature, and the version that answered.

        Raises:
            InferenceError: Triton refused or failed it, the model is not loaded, or an input does not fit.
            TritonTimeoutError: No answer in time.
            TritonUnavailableError: Not reachable.
        """
        try:
            known = config if config is not None else await self.model_config(name, version)
        except NotFoundError as error:
            raise InferenceError(error.message, model=name, version=version) from error
        request = to_request(name, version, inputs, outputs, known)
        try:
            response = await self._call("ModelInfer", request, f"inference on {name}", timeout)
        except _TritonSaidNo as error:
            raise InferenceError(
                f"{self.name} failed an inference on {name}{f':{version}' if version else ''}: "
                f"{_TRACEBACK.sub('', _REQUEST_ID.sub('', str(error)))}",
                model=name,
                version=version,
            ) from error
        return from_response(response, known), int(response.model_version)

    async def _metadata(self) -> Any:
        return await self._call("ServerMetadata", service_pb2.ServerMetadataRequest(), "metadata")

    async def _states(self, name: str) -> dict[int, str]:
        """States of a model's versions that are not gone."""
        return {
            entry.version: entry.state
            for entry in await self.index()
            if entry.model == name and entry.state not in _GONE
        }

    def _refused(self, name: str, raw: str) -> LoadRefusedError:
        reason = _TRACEBACK.sub("", _REFUSAL.sub("", raw)).strip()
        details: dict[str, Any] = {"model": name, "reason": raw}
        if "failed to poll" in raw:
            # All that Triton says of an invalid configuration; the cause is in its log alone.
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
            # Only what is restricted gets the key: what is not shown cannot be caught.
            shown = self._control if method.startswith("Repository") else ()
            with tracing.below(f"triton {method}", server=self.name, what=what):
                return await getattr(self._stub(), method)(request, timeout=limit, metadata=shown)
        except grpc.aio.AioRpcError as error:
            reason = error.details() or error.code().name
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TritonTimeoutError(
                    f"{self.name} ({self.grpc_url}) did not answer in {limit:g} s: {what}", seconds=limit
                ) from error
            if reason.startswith(_RESTRICTED):
                wrong = "its control key is not the one it was started with" if self._control else "it wants a key"
                raise TritonUnavailableError(
                    f"{self.name} ({self.grpc_url}) does not let us control it: {wrong}; set control_key of this "
                    "server in CONTROLPLANE_TRITON__SERVERS"
                ) from error
            if error.code() is grpc.StatusCode.UNAVAILABLE and not _is_about_model(reason):
                raise TritonUnavailableError(
                    f"{self.name} ({self.grpc_url}) cannot be reached for the {what}: {reason}"
                ) from error
            raise _TritonSaidNo(reason) from error


class _TritonSaidNo(Exception):  # noqa: N818 - never leaves this module
    """Triton refused a call; each method says what that means."""


def _is_about_model(reason: str) -> bool:
    """Whether UNAVAILABLE is Triton's word for a model rather than gRPC's for the connection."""
    return reason.startswith("Request for unknown model") or "is not ready" in reason


def _text(version: int | None) -> str:
    return "" if version is None else str(version)
