"""Tuning of a deployment: tries settings on a copy on the real server, and records the best one if requested."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from controlplane.domain.access import Principal
from controlplane.domain.deployment import DeploymentSettings, InstanceKind
from controlplane.domain.manifest import Manifest
from controlplane.domain.names import validate_model_name
from controlplane.domain.samples import Sample
from controlplane.domain.tuning import Objective, Point, Setting, Trial, TrialState, choose, frontier, points
from controlplane.errors import ConflictError, InvalidInputError, NotFoundError
from controlplane.gpu.base import HOST
from controlplane.gpu.host import HostSource, resident_bytes
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.deployments import DeploymentRevision
from controlplane.registry.registry import Registry
from controlplane.servers.server import ManagedServer
from controlplane.servers.server_set import ServerSet
from controlplane.services.deployments import Deployments
from controlplane.services.operations import Operation, Operations, Reporter
from controlplane.services.tuning.load_generator import Load
from controlplane.services.tuning.plot import plot
from controlplane.services.tuning.report import best_of, details_of, verdict
from controlplane.services.tuning.search import (
    ETA,
    Race,
    Space,
    applied,
    default_space,
    fits,
    present_setting,
    round_end,
    settings_to_try,
)
from controlplane.services.tuning.trial_model import Ask, TrialModel, alone_on, most_rows, requests_of, sweep
from controlplane.triton.client import TritonClient
from controlplane.triton.config_json import canonical
from controlplane.triton.model_config import build_config

logger = logging.getLogger(__name__)

_SWEEP_SECONDS = 5.0
"""Interval between attempts to sweep an unavailable server, and how long a tuning waits for a sweep."""
_OVERRIDES = frozenset({"instance_group", "dynamic_batching", "sequence_batching", "model_transaction_policy"})
_COMBINATIONS_MOST = 2000
_WARMUP_SHARE = 0.25
_WARMUP_MOST_SECONDS = 1.0
_FREE_MEMORY_SHARE = 0.5
"""The default share of the memory that is free at the start which a tuning may use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """Values to try instead of the default ones; None keeps the default."""

    instances: tuple[int, ...] | None = None
    max_batch_sizes: tuple[int, ...] | None = None
    queue_delays_microseconds: tuple[int | None, ...] | None = None
    preferred_batch_sizes: tuple[int, ...] | None = None
    threads: tuple[int | None, ...] | None = None

    def over(self, default: Space) -> Space:
        """Return a space in which these values replace the default ones."""
        return Space(
            instances=self.instances or default.instances,
            max_batch_sizes=self.max_batch_sizes or default.max_batch_sizes,
            queue_delays_microseconds=self.queue_delays_microseconds or default.queue_delays_microseconds,
            preferred_batch_sizes=self.preferred_batch_sizes or default.preferred_batch_sizes,
            threads=self.threads or default.threads,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneCommand:
    """A tuning to run and its limits; the fields are those of the API's request."""

    actor: str
    asker: Principal | None
    model: str
    objective: Objective = field(default_factory=Objective)
    clients: tuple[int, ...] = (1, 4, 16)
    rows: int | None = None
    axes: Axes = field(default_factory=Axes)
    max_settings: int = 16
    window_seconds: float = 1.0
    time_limit_seconds: float = 300.0
    memory_limit_bytes: int | None = None
    server: str | None = None
    apply: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Job:
    """A command with everything that it needs."""

    command: TuneCommand
    revision: DeploymentRevision
    manifest: Manifest
    requests: tuple[Sample, ...]
    server: ManagedServer
    present: Setting
    plan: tuple[Setting, ...]

    def settings(self, setting: Setting) -> DeploymentSettings:
        """Return a setting as a deployment's settings."""
        have = self.revision.spec.settings
        return have if setting == self.present else applied(setting, have, self.manifest.format)


class Tunings:
    """Runs tunings.

    Args:
        registry: The versions.
        deployments: Records the best settings.
        operations: Runs tunings.
        servers: The Triton servers.
        request_timeout_seconds: Deadline of one request.
        room: Returns the bytes of host memory that a server's budget has left; None if there is no budget.
    """

    def __init__(
        self,
        registry: Registry,
        deployments: Deployments,
        operations: Operations,
        servers: ServerSet,
        *,
        request_timeout_seconds: float,
        room: Callable[[str], int | None],
    ) -> None:
        self._room = room
        self._registry = registry
        self._deployments = deployments
        self._operations = operations
        self._servers = servers
        self._timeout = request_timeout_seconds
        self._unswept = {server.name for server in servers}
        self._sweeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start to remove what killed tunings left on the servers; unavailable servers are cleaned later."""
        self._sweep_again({server.name for server in self._servers})

    async def close(self) -> None:
        """Stop the removal."""
        sweeper, self._sweeper = self._sweeper, None
        if sweeper is not None:
            sweeper.cancel()
            await asyncio.wait([sweeper])

    async def start(self, command: TuneCommand) -> Operation:
        """Check what can be checked immediately, and start. The operation fails if another tuning uses the server.

        Raises:
            NotFoundError: The model is not deployed, or the server does not exist.
            InvalidInputError: The version has no golden samples, or they do not match the deployment.
            ConflictError: This control plane has no servers.
        """
        job = await self._prepare(command)

        async def work(reporter: Reporter) -> dict[str, Any]:
            return await self._tune(job, reporter)

        subject = f"{command.model}:{job.revision.spec.version}"
        return self._operations.start("tune", work, actor=command.actor, subject=subject)

    async def _prepare(self, command: TuneCommand) -> _Job:
        model = validate_model_name(command.model)
        server = self._server(command.server)
        revision = await asyncio.to_thread(self._registry.deployments.get, model, fresh=True)
        spec = revision.spec
        manifest = await asyncio.to_thread(self._registry.manifest, model, spec.version)
        samples = await asyncio.to_thread(self._registry.samples, manifest)
        if not samples or manifest.signature is None:
            raise InvalidInputError(
                f"{model}:{spec.version} has no golden samples, which tuning sends and compares the "
                "responses with; publish a version with samples",
                model=model,
            )
        _check_overrides(model, spec.settings)
        batched = manifest.signature.batched
        if command.rows is not None and not batched:
            raise InvalidInputError(
                f"rows is {command.rows}, but {model}:{spec.version} has no batch dimension; leave it out", model=model
            )
        config = build_config(model, manifest, spec.settings, [spec.version], samples=samples)
        largest = int(config.get("max_batch_size", 0))
        if command.rows is not None and command.rows > largest:
            raise InvalidInputError(
                f"rows is {command.rows}, but the deployment accepts at most {largest}", rows=command.rows
            )
        requests = await asyncio.to_thread(requests_of, samples, command.rows)
        rows = most_rows(requests) if batched else 0
        if largest and rows > largest:
            raise InvalidInputError(
                f"the golden samples have up to {rows} rows, but the deployment accepts at most "
                f"{largest}; set rows to shorten them",
                rows=rows,
                max_batch_size=largest,
            )
        # The embedded server runs on our cores; those of another machine are unknown.
        cores = len(os.sched_getaffinity(0)) if server.embedded else None
        present = present_setting(spec.settings, largest)
        on_gpu = spec.settings.instance_kind is InstanceKind.GPU
        space = command.axes.over(
            default_space(present, batched=batched and largest > 0, cores=cores or 4, on_gpu=on_gpu)
        )
        if space.combinations > _COMBINATIONS_MOST:
            raise InvalidInputError(
                f"the given values make {space.combinations} combinations; the maximum is "
                f"{_COMBINATIONS_MOST}, so give fewer values"
            )
        plan = await asyncio.to_thread(
            settings_to_try,
            space,
            present,
            rows=rows,
            at_most=command.max_settings,
            cores=None if on_gpu else cores,
        )
        return _Job(command, revision, manifest, requests, server, present, plan)

    def _server(self, name: str | None) -> ManagedServer:
        if name is None:
            if not self._servers:
                raise ConflictError("this control plane has no Triton servers to tune on")
            return self._servers[0]
        if (server := self._servers.find(name)) is None:
            have = ", ".join(one.name for one in self._servers) or "none"
            raise NotFoundError(
                f"unknown server {name[:80]!r}; the servers are: {have}",
                server=name[:80],
            )
        return server

    async def _tune(self, job: _Job, reporter: Reporter) -> dict[str, Any]:
        began = time.monotonic()
        # The ledger is read here, because it belongs to this event loop.
        limit = await asyncio.to_thread(_memory_limit, job, self._room(job.server.name))
        spec = job.revision.spec
        async with alone_on(job.server, patience_seconds=_SWEEP_SECONDS):
            client = TritonClient(job.server.name, job.server.client.grpc_url, timeouts=job.server.client.timeouts)
            copy = TrialModel(job.server, spec.model, spec.version, job.manifest, job.requests, client)
            try:
                reporter.stage("stage", f"creating a copy of {spec.model}:{spec.version}")
                await copy.stage(self._registry)
                race = Race(job.plan, job.command.objective)
                end = began + job.command.time_limit_seconds
                await self._search(job, copy, race, limit, end, reporter)
            finally:
                # In a task of its own, so that a second cancellation does not interrupt it.
                await asyncio.shield(asyncio.create_task(self._remove(copy)))
        return await self._conclude(job, race.outcome(), limit, time.monotonic() - began, reporter)

    async def _search(
        self, job: _Job, copy: TrialModel, race: Race, limit: int | None, end: float, reporter: Reporter
    ) -> None:
        # The model's own processes show how much an instance needs, until the copy's first has been measured.
        per_instance = await asyncio.to_thread(_memory_of_an_instance, job)
        seen = 0
        visits = 0.0  # maximum time for loading, checking and unloading, in seconds
        while line := race.next_round():
            loads = _loads(job.command, race.number, self._timeout)
            planned = sum(load.warmup_seconds + load.window_seconds for load in loads)
            until = round_end(time.monotonic(), end, race.number, race.count)
            for position, setting in enumerate(line):
                now = time.monotonic()
                # A choice needs two settings; from the third on, a round keeps to its share of the time.
                if now + visits + planned > (end if position < 2 else until) and not (race.number == position == 0):
                    if race.number == 0:
                        break
                    return
                reporter.stage(
                    "measure",
                    f"round {race.number + 1} of {race.count}: {setting}",
                    fraction=min(1.0, (race.number + position / len(line)) / race.count),
                    details=details_of(race.outcome()),
                )
                if not fits(setting, per_instance, limit):
                    assert per_instance is not None
                    race.record(
                        Trial(
                            setting=setting,
                            state=TrialState.MEMORY,
                            message=f"not loaded: an instance needs {per_instance} bytes, the limit is {limit}",
                        )
                    )
                    continue
                trial = await copy.measure(setting, job.settings(setting), Ask(loads, limit, end))
                if trial.state is TrialState.TIME:
                    return
                race.record(trial)
                if trial.state is TrialState.MEASURED:
                    visits = max(visits, time.monotonic() - now - planned)
                if trial.memory_bytes is not None:
                    per_instance = seen = max(seen, trial.memory_bytes // setting.instances)
            else:
                continue
            # The first round exceeded its share of the time: continue with the measured settings only.
            race.close_round()

    async def _conclude(
        self, job: _Job, trials: tuple[Trial, ...], limit: int | None, seconds: float, reporter: Reporter
    ) -> dict[str, Any]:
        objective = job.command.objective
        best = choose(trials, objective)
        present = next(trial for trial in trials if trial.present)
        message = verdict(objective, trials, best)
        revision, operation = None, None
        if job.command.apply and best is not None and not best.trial.present:
            reporter.stage("apply", f"deploying {job.revision.spec.model} with {best.trial.setting}")
            revision, operation, why = await self._apply(job, best)
            message += why
        edge = frontier(points(trials))
        return {
            "model": job.revision.spec.model,
            "version": job.revision.spec.version,
            "server": job.server.name,
            "objective": objective.model_dump(mode="json"),
            "rows": job.command.rows,
            "memory_limit_bytes": limit,
            "seconds": round(seconds, 3),
            "trials": [trial.model_dump(mode="json") for trial in trials],
            "frontier": [{"trial": trials.index(one.trial), "clients": one.measured.clients} for one in edge],
            "met": best is not None,
            "message": message,
            "present": best_of(present, objective),
            "best": None
            if best is None
            else {
                "trial": trials.index(best.trial),
                "clients": best.measured.clients,
                "settings": job.settings(best.trial.setting).model_dump(mode="json"),
                "measurement": best.measured.model_dump(mode="json"),
            },
            "applied_revision": revision,
            "applied_operation": operation,
            "svg": plot(f"{job.revision.spec.model}:{job.revision.spec.version}", trials, objective, best),
        }

    async def _apply(self, job: _Job, best: Point) -> tuple[int | None, str | None, str]:
        """Record the best setting, and return the revision, its operation, and a message about it."""
        spec, model = job.revision.spec, job.revision.spec.model
        now = await asyncio.to_thread(self._registry.deployments.get, model, fresh=True, deleted=True)
        if now.spec.deleted or (now.spec.version, now.spec.settings) != (spec.version, spec.settings):
            return (
                None,
                None,
                f"; not applied: the deployment of {model} was changed during the tuning (revision "
                f"{now.number}); tune it again",
            )
        deployment = await self._deployments.put(
            model,
            spec.reference,
            settings=job.settings(best.trial.setting),
            actor=job.command.actor,
            asker=job.command.asker,
            reason=job.command.reason or f"tuned for {job.command.objective}: {best.trial.setting}",
        )
        return deployment.revision, deployment.operation_id, f"; applied as revision {deployment.revision}"

    async def _remove(self, copy: TrialModel) -> None:
        try:
            await copy.remove()
        except Exception:
            # The copy must be removed from the server in the end, whatever went wrong.
            logger.exception("failed to remove the tuned copy %s from %s; will try again", copy.name, copy.server.name)
            self._sweep_again({copy.server.name})

    def _sweep_again(self, names: set[str]) -> None:
        self._unswept |= names
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep(), name="sweep tunings")

    async def _sweep(self) -> None:
        while self._unswept:
            for name in sorted(self._unswept):
                if (server := self._servers.find(name)) is None or await sweep(server):
                    self._unswept.discard(name)
            if self._unswept:
                await asyncio.sleep(_SWEEP_SECONDS)


def _check_overrides(model: str, settings: DeploymentSettings) -> None:
    """Refuse to tune settings that an override fixes: every trial would run the same, or need requests in sequences."""
    fixed = _OVERRIDES.intersection(canonical(settings.config_overrides))
    if fixed:
        name = sorted(fixed)[0]
        raise InvalidInputError(
            f"{model} has config_overrides.{name}, which overrides a setting that tuning changes; "
            "set it in the deployment's settings instead, or remove it",
            model=model,
            field=f"config_overrides.{name}",
        )


def _memory_limit(job: _Job, room: int | None) -> int | None:
    """Return the requested limit, or else half of the free memory, and never more than the budget has left.

    Return None if the server's processes cannot be observed.
    """
    if job.server.embedded is None:
        return None
    limit = job.command.memory_limit_bytes
    if limit is None:
        free = HostSource().read()[0].free_bytes
        limit = None if free is None else int(free * _FREE_MEMORY_SHARE)
    return limit if room is None else room if limit is None else min(limit, room)


def room_of(reconciler: Reconciler) -> Callable[[str], int | None]:
    """Return a function that reports how much host memory a server's ledger has left."""

    def room(server: str) -> int | None:
        for memory in reconciler.memory():
            if memory.server == server:
                return next((device.free_bytes for device in memory.devices if device.device == HOST), None)
        return None

    return room


def _memory_of_an_instance(job: _Job) -> int | None:
    """Return the resident memory of one of the model's own processes, if it is loaded and they can be observed."""
    if job.server.embedded is None:
        return None
    spec = job.revision.spec
    found = resident_bytes(job.server.embedded.processes_of(spec.model, spec.version))
    return sum(found.values()) // len(found) if found else None


def _loads(command: TuneCommand, number: int, timeout_seconds: float) -> tuple[Load, ...]:
    window = command.window_seconds * ETA**number
    warmup = min(_WARMUP_SHARE * window, _WARMUP_MOST_SECONDS)
    return tuple(Load(clients, warmup, window, timeout_seconds) for clients in sorted(set(command.clients)))
