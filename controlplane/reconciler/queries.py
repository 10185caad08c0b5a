"""Answers queries about the loop's state: statuses, ledgers, explanations, load plans. Changes nothing."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

from pydantic import TypeAdapter

from controlplane.domain.cordons import CordonStatus
from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec
from controlplane.domain.health import ServerHealth
from controlplane.domain.names import Reference
from controlplane.domain.states import DeploymentStatus, Phase, ServerStatus
from controlplane.lifecycle.desired import DesiredDeployment, DesiredStateResolver, PreparedVersion
from controlplane.lifecycle.status import overall, placed
from controlplane.memory.load_plan import plan_for
from controlplane.memory.reporting import ModelOnServer, model_view, server_memory, server_why
from controlplane.memory.views import (
    AssignmentView,
    ExplanationView,
    LoadPlanView,
    ModelMemoryView,
    PlacementView,
    ServerLoadPlan,
    ServerMemory,
)
from controlplane.placement.types import Assignment
from controlplane.reconciler.loop_state import LoopState
from controlplane.reconciler.rollout_readiness import RolloutReadiness, rollout_readiness
from controlplane.reconciler.server_state import TrackedServer
from controlplane.registry.deployments import DeploymentRevision
from controlplane.registry.registry import Registry

_TIMES: Any = {
    "conditions": {"__all__": {"last_transition_time"}},
    "servers": {"__all__": {"conditions": {"__all__": {"last_transition_time"}}}},
}
"""The transition times in a status, as pydantic excludes them."""
_STATUS = TypeAdapter(DeploymentStatus)


class ReconcilerQueries:
    """Read side of the loop. No I/O, except for `plan_load`.

    Args:
        state: The loop's state.
        desired_state: Prepares versions that are not deployed.
        registry: The bucket.
        preview: Returns the servers on which a version would be placed, and why on none.
        cordon: Returns the cordon of a server.

    Attributes:
        computed: How many statuses were computed.
    """

    def __init__(
        self,
        state: LoopState,
        desired_state: DesiredStateResolver,
        registry: Registry,
        *,
        preview: Callable[[str, PreparedVersion, DeploymentSettings], tuple[tuple[Assignment, ...], str]],
        cordon: Callable[[TrackedServer], CordonStatus | None],
    ) -> None:
        self._state = state
        self._cordon = cordon
        self._preview = preview
        self._desired_state = desired_state
        self._registry = registry
        self._touched = state.follow()
        self._statuses: dict[str, DeploymentStatus] = {}
        self._shown: dict[str, DeploymentStatus] = {}
        self._unsteady: set[str] = set()
        self._phases: Counter[Phase] = Counter()
        self.computed = 0

    def status(self, model: str) -> DeploymentStatus | None:
        """Return the status of a deployment; None if it is unknown."""
        if model in self._touched or model in self._unsteady or model not in self._statuses:
            self._update(model)
        return self._statuses.get(model)

    def statuses(self) -> dict[str, DeploymentStatus]:
        """Return the statuses of all deployments, by model; removed ones only until they are unloaded."""
        self.recheck()
        self.refresh()
        return dict(self._shown)

    def phases(self) -> Mapping[Phase, int]:
        """Return the number of deployments in each phase, as of the newest refresh."""
        return self._phases

    def recheck(self) -> None:
        """Mark the statuses that change with time."""
        self._touched |= self._unsteady

    def refresh(self, limit: int | None = None) -> bool:
        """Update marked statuses, at most ``limit`` of them; return whether none is left."""
        for model in list(itertools.islice(self._touched, limit)):
            self._update(model)
        return not self._touched

    def is_current(self, model: str) -> bool:
        """Return whether the status of a deployment is known without computing it."""
        return model not in self._touched

    def _update(self, model: str) -> None:
        """Compute a status, and keep it until something changes or the status changes with time."""
        self._touched.discard(model)
        self.computed += 1
        shown, status = self._shown.pop(model, None), self._status(model)
        if shown is not None:
            self._phases[shown.phase] -= 1
        self._unsteady.discard(model)
        if status is None:
            self._statuses.pop(model, None)
            return
        self._statuses[model] = status
        if any(one.retry_at is not None or one.bake_until is not None for one in status.servers):
            self._unsteady.add(model)  # it contains the time of a later event
        if not (self._state.desired_state[model].revision.spec.deleted and status.phase is Phase.UNLOADED):
            self._shown[model] = status
            self._phases[status.phase] += 1

    def overlooked(self, model: str) -> bool:
        """Return whether the kept status of a deployment differs from its present one."""
        if model in self._touched or model in self._unsteady or model not in self._statuses:
            return False
        kept, present = self._statuses[model], self._status(model)
        if present is not None and not self._keeps_times(model, present):
            return _without_times(kept) != _without_times(present)
        return kept != present

    def _keeps_times(self, model: str, status: DeploymentStatus) -> bool:
        """Return whether the transition times of all conditions in a status are kept.

        Until a model is placed, and while an action is in flight, they have the time of the query.
        """
        units = (self._state.servers[one.server].unit(model) for one in status.servers)
        return all(unit.task is None and unit.conditions for unit in units)

    def _status(self, model: str) -> DeploymentStatus | None:
        desired_deployment = self._state.desired_state.get(model)
        if desired_deployment is None:
            return None
        now = self._state.clock()
        assignments, others = [], []
        for server in self._state.servers.values():
            place = server.places.get(model)
            status = server.unit(model).status(server.desired(desired_deployment), server.trouble, now)
            if place is None or place.assignment:
                assignments.append(status)
            elif place.here or (server.trouble is None and status.phase is not Phase.UNLOADED):
                others.append(status)  # it stays until it answers elsewhere, or is about to be unloaded
        spec = desired_deployment.revision.spec
        if spec.loaded and not spec.deleted:
            least = spec.settings.min_replicas
            return placed(
                desired_deployment.revision.number, assignments, others, least, self._state.plan.unplaced.get(model, "")
            )
        return overall(desired_deployment.revision.number, assignments + others)

    def deployed(self) -> Mapping[str, DeploymentRevision]:
        """Return a live view of the newest revision of each deployment, by model."""
        return MappingProxyType(self._state.deployed)

    def health(self, model: str) -> tuple[ServerHealth, ...]:
        """Return the probe results of a model, by server."""
        found = []
        for server in self._state.servers.values():
            watch = server.unit(model).watch
            found.append(ServerHealth(server=server.name, summary=watch.summary(), results=tuple(watch.results)))
        return tuple(found)

    def servers(self) -> tuple[ServerStatus, ...]:
        """Return the newest status of the servers."""
        return tuple(server.status(self._cordon(server)) for server in self._state.servers.values())

    def outage_seconds(self, model: str) -> float:
        """Return how long no server of a model has been reachable; 0 if one is, or the model could be placed on one.

        A model's servers are those where it is placed; before it is placed, all.
        """
        known = list(self._state.servers.values())
        servers = [server for server in known if server.has_place(model)] or known
        since = [server.away_since for server in servers if server.away_since is not None]
        if not servers or len(since) < len(servers):
            return 0.0
        return time.monotonic() - max(since)

    def spec(self, model: str) -> DeploymentSpec | None:
        """Return the desired state of a model; None if it has no known deployment."""
        return self._state.spec(model)

    def trials(self) -> dict[str, RolloutReadiness]:
        """Return the state of every rollout in progress, by model."""
        servers = self._state.servers.values()
        found = {
            model: rollout_readiness(self._state.desired_state[model], servers) for model in sorted(self._state.trials)
        }
        return {model: trial for model, trial in found.items() if trial is not None}

    def memory(self) -> tuple[ServerMemory, ...]:
        """Return the ledgers, by server."""
        now = self._state.clock()
        desired_state = self._state.desired_state.values()
        return tuple(
            server_memory(
                server.scheduler,
                [_occupant(server, desired_deployment) for desired_deployment in desired_state],
                now,
                server.guard.view(),
            )
            for server in self._state.servers.values()
        )

    def memory_of(self, model: str) -> tuple[tuple[str, ModelMemoryView], ...]:
        """Return a model's memory by server; empty if it has no known deployment."""
        desired_deployment = self._state.desired_state.get(model)
        servers = () if desired_deployment is None else self._state.servers.values()
        return tuple(
            (one.name, model_view(one.scheduler, _occupant(one, desired_deployment)))
            for one in servers
            if desired_deployment is not None
        )

    def why(self, model: str) -> ExplanationView | None:
        """Return the explanation of a model's state; None if it has no known deployment."""
        desired_deployment = self._state.desired_state.get(model)
        if desired_deployment is None:
            return None
        now = self._state.clock()
        servers = [
            server_why(server.scheduler, _occupant(server, desired_deployment), now)
            for server in self._state.servers.values()
        ]
        return ExplanationView(model=model, servers=tuple(servers), placement=self._placement(desired_deployment))

    def _placement(self, desired_deployment: DesiredDeployment) -> PlacementView | None:
        workload = self._state.plan.workloads.get(desired_deployment.model)
        if workload is None:
            return None
        settings, scale = desired_deployment.revision.spec.settings, self._state.scales.get(desired_deployment.model)
        return PlacementView(
            replicas=workload.replicas,
            min_replicas=settings.min_replicas,
            max_replicas=settings.max_replicas or settings.min_replicas,
            replicas_why=scale.why if scale else "",
            assignments=tuple(
                AssignmentView(
                    server=assignment.server, devices=assignment.devices, bytes=assignment.bytes, why=assignment.why
                )
                for assignment in self._state.plan.assignments.get(desired_deployment.model, ())
            ),
            unplaced=self._state.plan.unplaced.get(desired_deployment.model, ""),
        )

    def is_demand_pending(self, model: str, status: DeploymentStatus, *, leading: bool) -> bool:
        """Return whether a load request for a model that is not loaded is still in progress on some server."""
        if status.phase is not Phase.UNLOADED:
            return False
        desired_deployment = self._state.desired_state.get(model)
        if (
            desired_deployment is None
            or desired_deployment.revision.spec.deleted
            or not desired_deployment.revision.spec.loaded
        ):
            return False
        return not leading or any(
            server.scheduler.model_state(model).demand.since is not None for server in self._state.servers.values()
        )

    async def plan_load(
        self, model: str, version: int | None = None, settings: DeploymentSettings | None = None
    ) -> LoadPlanView:
        """Return what loading a version would do.

        Args:
            model: The model; it need not be deployed.
            version: The version; None selects the deployed one, or the newest.
            settings: The settings; None selects the deployment's.

        Raises:
            NotFoundError: No such model or version.
            InvalidInputError: The version cannot run with these settings.
        """
        desired_deployment = self._state.desired_state.get(model)
        spec = (
            desired_deployment.revision.spec
            if desired_deployment and not desired_deployment.revision.spec.deleted
            else None
        )
        wanted = settings or (spec.settings if spec else DeploymentSettings())

        def prepare() -> tuple[PreparedVersion, int]:
            number = version or (spec.version if spec else self._registry.resolve(Reference(model)).number)
            prepared = self._desired_state.prepare(model, number, wanted)
            missing = {file.sha256: file.size_bytes for file in prepared.manifest.files}
            path_of = self._registry.cache.path_of
            return prepared, sum(size for digest, size in missing.items() if not path_of(digest).exists())

        prepared, fetch_bytes = await asyncio.to_thread(prepare)
        now = self._state.clock()
        plans = []
        assignments, unplaced = self._preview(model, prepared, wanted)
        if not assignments:
            nowhere = ServerLoadPlan(server="(none)", decision="refuse", why=unplaced)
            return LoadPlanView(model=model, version=prepared.target.version, servers=(nowhere,))
        for assignment in assignments:
            server = self._state.servers.get(assignment.server)
            if server is None:
                continue  # it has just left
            facts = server.units[model].facts if model in server.units else None
            plans.append(
                plan_for(server.scheduler, prepared, model, facts, fetch_bytes, assignment.devices, assignment.why, now)
            )
        return LoadPlanView(model=model, version=prepared.target.version, servers=tuple(plans))


def _without_times(status: DeploymentStatus) -> dict[str, Any]:
    return cast(dict[str, Any], _STATUS.dump_python(status, exclude=_TIMES))


def _occupant(server: TrackedServer, desired_deployment: DesiredDeployment) -> ModelOnServer:
    place = server.places.get(desired_deployment.model)
    elsewhere = place.why if place is not None and not place.here else ""
    return ModelOnServer(
        desired_deployment,
        server.unit(desired_deployment.model),
        server.trouble.message if server.trouble else "",
        elsewhere,
    )
