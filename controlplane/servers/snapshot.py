"""Takes snapshots of a server: loaded versions, their configurations, and the contents of its model repository."""

import asyncio
import hashlib
import json
import logging
import shutil
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlplane.domain.conditions import ServerCondition
from controlplane.domain.index_states import READY
from controlplane.domain.names import CANDIDATE_SUFFIX
from controlplane.domain.states import LoadedVersion, ServerState
from controlplane.errors import ControlPlaneError, NotFoundError, TritonTimeoutError
from controlplane.servers.server import ManagedServer
from controlplane.triton.instance_groups import Gpus, present_gpus, said_gpus
from controlplane.triton.model_config import DIGEST_PARAMETER

logger = logging.getLogger(__name__)

_SHARED_MEMORY = Path("/dev/shm")
"""Python-based backends use it to communicate with the server."""


@dataclass(frozen=True, slots=True)
class Space:
    """Free space on one file system.

    Attributes:
        kind: The condition that this space determines.
        path: The path that was checked.
        free_bytes: Free bytes.
        total_bytes: Total bytes.
    """

    kind: ServerCondition
    path: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class ServerSnapshot:
    """Result of one observation of a server.

    Attributes:
        state: Whether the server can be used.
        message: The reason if it cannot.
        version: Triton's version.
        generation: Start count of an embedded server; 0 for others.
        index: Its repository index.
        digests: Configuration digest by Triton name, for loaded models that are deployed.
        configs: The complete configurations, likewise.
        fingerprints: Fingerprints of those configurations.
        gpus: The GPUs that each loaded model uses, by Triton name.
        said_gpus: The GPUs that its load request named, likewise.
        staged: Versions in the model repository by Triton name.
        live: Whether Triton reports that it is live.
        timed_out: Whether the snapshot timed out, as opposed to a refused connection.
        spaces: Disk and shared memory that the server needs, as far as this process can see them.
        agent: Why its agent does not answer; empty if it does, None without an agent.
    """

    state: ServerState
    message: str = ""
    version: str = ""
    generation: int = 0
    index: tuple[LoadedVersion, ...] = ()
    digests: dict[str, str | None] = field(default_factory=dict)
    configs: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    gpus: dict[str, Gpus | None] = field(default_factory=dict)
    said_gpus: dict[str, Gpus | None] = field(default_factory=dict)
    staged: dict[str, set[int]] = field(default_factory=dict)
    by_model: dict[str, list[LoadedVersion]] = field(default_factory=dict)
    live: bool = False
    timed_out: bool = False
    spaces: tuple[Space, ...] = ()
    agent: str | None = None

    def differs(self, before: "ServerSnapshot") -> set[str]:
        """Return the models that differ between the two snapshots."""
        found = _differing(before.by_model, self.by_model)
        for old, new in (
            (before.staged, self.staged),
            (before.fingerprints, self.fingerprints),
            (before.digests, self.digests),
        ):
            found |= {name.removesuffix(CANDIDATE_SUFFIX) for name in _differing(old, new)}
        return found


def _differing(before: Mapping[str, object], now: Mapping[str, object]) -> set[str]:
    """Return the keys whose values differ, including keys that only one mapping has."""
    if before == now:
        return set()
    return {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}


async def take_snapshot(
    server: ManagedServer, models: Container[str], known_version: str, *, restarted: bool = False
) -> ServerSnapshot:
    """Take one snapshot of a server.

    Args:
        server: The server.
        models: The deployed models; all other models on the server are listed but not inspected.
        known_version: Triton's version from an earlier snapshot; if empty, the server is asked for it.
        restarted: Whether the server may have restarted since then, with another version.
    """
    embedded = server.embedded
    generation = embedded.generation if embedded else 0
    spaces = await asyncio.to_thread(_spaces, server)
    if embedded and embedded.state is not ServerState.READY:
        return ServerSnapshot(embedded.state, embedded.message, known_version, generation, spaces=spaces)
    try:
        index = await server.client.index()
        loaded: dict[str, int] = {}
        for entry in index:
            if entry.state == READY and entry.model.removesuffix(CANDIDATE_SUFFIX) in models:
                loaded[entry.model] = max(entry.version, loaded.get(entry.model, 0))
        # An external server that restarted between two snapshots has nothing loaded.
        version = known_version if (loaded or embedded) and not restarted else ""
        version = version or await server.client.server_metadata()
        configs = await asyncio.gather(*(_config(server, name, number) for name, number in loaded.items()))
        staged = await asyncio.to_thread(server.repository.staged)
        live = await server.client.server_live()
    except (ControlPlaneError, OSError) as error:
        timed_out = isinstance(error, TritonTimeoutError)
        return ServerSnapshot(
            ServerState.UNREACHABLE, str(error), known_version, generation, timed_out=timed_out, spaces=spaces
        )
    by_model: dict[str, list[LoadedVersion]] = {}
    for entry in index:
        by_model.setdefault(entry.model.removesuffix(CANDIDATE_SUFFIX), []).append(entry)
    return ServerSnapshot(
        ServerState.READY,
        version=version,
        generation=generation,
        index=index,
        digests={name: _digest(config) for name, config in zip(loaded, configs, strict=True)},
        configs=dict(zip(loaded, configs, strict=True)),
        fingerprints={name: fingerprint(config) for name, config in zip(loaded, configs, strict=True)},
        gpus={name: present_gpus(config) for name, config in zip(loaded, configs, strict=True) if config},
        said_gpus={name: said_gpus(config) for name, config in zip(loaded, configs, strict=True)},
        staged=staged,
        by_model=by_model,
        live=live,
        spaces=spaces,
        agent=server.repository.problem(),
    )


def _spaces(server: ManagedServer) -> tuple[Space, ...]:
    """Return the free space of the model repository's disk and, for an embedded server, of the shared memory."""
    found = []
    if (space := server.repository.space()) is not None:
        found.append(Space(ServerCondition.DISK_PRESSURE, str(server.repository.root), *space))
    if server.embedded is not None:
        with suppress(OSError):
            usage = shutil.disk_usage(_SHARED_MEMORY)
            found.append(Space(ServerCondition.SHARED_MEMORY_PRESSURE, str(_SHARED_MEMORY), usage.free, usage.total))
    return tuple(found)


async def _config(server: ManagedServer, name: str, version: int) -> Mapping[str, Any]:
    try:
        return await server.client.model_config(name, version)
    except NotFoundError:
        return {}  # unloaded in the meantime


def _digest(config: Mapping[str, Any]) -> str | None:
    value = config.get("parameters", {}).get(DIGEST_PARAMETER, {})
    return str(value["string_value"]) if "string_value" in value else None


def fingerprint(config: Mapping[str, Any]) -> str:
    """Return the digest of the configuration that Triton reports for a model; empty if it reports none."""
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest() if config else ""
