"""What the loop knows: the servers, and what is wanted of them. Mutable; changed by the loop's own task alone.

A handler that changes anything about a model *marks* it. The cycle then works on what is marked and on nothing else:

- `plan_again` marks a model on one server: its residency is decided again and its next action is planned again.
- `touch` marks a model for everybody who follows changes: placement, statuses, routes, rollbacks, condition history.
- `moved` names the servers whose health or capacity may have changed.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from controlplane.domain.deployment import DeploymentSpec
from controlplane.lifecycle.desired import DesiredDeployment
from controlplane.lifecycle.events import EventLog
from controlplane.placement.autoscale import Scale
from controlplane.placement.types import NO_PLAN, Plan
from controlplane.reconciler.server_state import TrackedServer
from controlplane.registry.deployments import DeploymentRevision


@dataclass
class LoopState:
    """What the loop knows.

    Attributes:
        servers: By name.
        events: What is told.
        clock: Gives the time (UTC).
        desired_state: The newest revision of each deployment, by model; written by `adopt` alone.
        deployed: The revisions of what is deployed, by model: `desired_state` without removed deployments.
        trials: Models with a rollout under way.
        promised: Models with an objective.
        step: Grows by one with every message.
        plan: Who is placed where.
        scales: How many replicas there are, and since when, by model.
        read_epoch: The lease's epoch in which all deployments were read last; None before the first time.
        moved: Servers whose health or capacity may have changed since the newest cycle.
    """

    servers: dict[str, TrackedServer]
    events: EventLog
    clock: Callable[[], datetime]
    desired_state: dict[str, DesiredDeployment] = field(default_factory=dict)
    deployed: dict[str, DeploymentRevision] = field(default_factory=dict)
    trials: set[str] = field(default_factory=set)
    promised: set[str] = field(default_factory=set)
    step: int = 0
    plan: Plan = NO_PLAN
    scales: dict[str, Scale] = field(default_factory=dict)
    read_epoch: int | None = None
    moved: set[str] = field(default_factory=set)
    _followers: list[set[str]] = field(default_factory=list)

    def follow(self) -> set[str]:
        """Return a set that gets the name of every model that is touched; its owner empties it."""
        followed: set[str] = set()
        self._followers.append(followed)
        return followed

    def touch(self, models: Iterable[str]) -> None:
        """Say that something about these models changed that a status, a route or the placement depends on."""
        for followed in self._followers:
            followed.update(models)

    def plan_again(self, server: TrackedServer, model: str) -> None:
        """Say that something changed that the next action for a model on a server depends on."""
        server.unplanned.add(model)
        self.touch((model,))

    def plan_all_again(self, server: TrackedServer) -> None:
        """Say that something changed that concerns all models on a server."""
        here = {model for model, place in server.places.items() if place.here}
        here = (here | server.present) & self.desired_state.keys()
        server.unplanned |= here
        self.moved.add(server.name)
        self.touch(here)

    def adopt(self, desired_deployment: DesiredDeployment) -> None:
        """Keep a revision as what is wanted."""
        model, spec = desired_deployment.model, desired_deployment.revision.spec
        self.desired_state[model] = desired_deployment
        if spec.deleted:
            self.deployed.pop(model, None)
        else:
            self.deployed[model] = desired_deployment.revision
        (self.trials.discard if spec.trial is None else self.trials.add)(model)
        promises = spec.settings.objectives is not None and not spec.deleted
        (self.promised.add if promises else self.promised.discard)(model)
        self.touch((model,))

    def spec(self, model: str) -> DeploymentSpec | None:
        """Return what is wanted of a model; None where no deployment of it is known."""
        revision = self.deployed.get(model)
        return None if revision is None else revision.spec

    def judge(self, server: TrackedServer) -> set[str]:
        """Decide again which models shall be loaded, as far as something changed for them; return whose answer did."""
        scheduler, now = server.scheduler, self.clock()
        names = scheduler.due(now) | scheduler.unjudged | server.unplanned
        scheduler.unjudged.clear()
        pairs = []
        gone = []
        for model in sorted(names):
            desired_deployment = self.desired_state.get(model)
            if desired_deployment is not None and server.has_place(model):
                pairs.append((desired_deployment, server.unit(model)))
            else:
                gone.append(model)
        changed = scheduler.judge(pairs, now, gone=gone)
        if scheduler.reworded:
            self.touch(scheduler.reworded)
            scheduler.reworded.clear()
        return changed
