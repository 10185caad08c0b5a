"""State of the loop: the servers and their desired state. Mutable; only the loop's own task changes it.

A handler that changes anything about a model *marks* it. The cycle then works only on marked models:

- `plan_again` marks a model on one server: its residency is decided again and its next action is planned again.
- `touch` marks a model for all followers: placement, statuses, routes, rollbacks, condition history. A change that
  placement does not depend on (``moves=False``) is not for placement.
- `moved` names the servers whose health or capacity may have changed.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime

from controlplane.domain.deployment import DeploymentSpec
from controlplane.lifecycle.desired import DesiredDeployment
from controlplane.lifecycle.events import EventLog
from controlplane.placement.autoscale import Scale
from controlplane.placement.types import NO_PLAN, Plan
from controlplane.reconciler.pipelines import MemberGraph, refresh
from controlplane.reconciler.server_state import TrackedServer
from controlplane.registry.deployments import DeploymentRevision


@dataclass
class LoopState:
    """State of the loop.

    Attributes:
        servers: Servers by name.
        events: The event log.
        clock: Gives the time (UTC).
        desired_state: The newest revision of each deployment, by model; only `adopt` writes it.
        deployed: The revisions of existing deployments, by model: `desired_state` without removed deployments.
        trials: Models with a rollout in progress.
        promised: Models with an objective.
        step: Incremented with every message.
        plan: The placement plan.
        scales: The number of replicas and since when, by model.
        read_epoch: The lease's epoch in which all deployments were last read; None before the first read.
        moved: Servers whose health or capacity may have changed since the newest cycle.
        graph: Pipelines and their members.
        cordons_known: Whether the cordons were read; before that, nothing is placed.
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
    graph: MemberGraph = field(default_factory=MemberGraph)
    cordons_known: bool = False
    _followers: list[set[str]] = field(default_factory=list)
    _movers: list[set[str]] = field(default_factory=list)

    def follow(self, *, placement: bool = False) -> set[str]:
        """Return a set that receives the name of every touched model; its owner empties it.

        Args:
            placement: Whether only changes are of interest that placement may depend on.
        """
        followed: set[str] = set()
        (self._movers if placement else self._followers).append(followed)
        return followed

    def touch(self, models: Collection[str], *, moves: bool = True) -> None:
        """Mark models whose statuses or routes may have changed, and, if it moves them, their placement."""
        for followed in self._followers:
            followed.update(models)
        for followed in self._movers if moves else ():
            followed.update(models)

    def plan_again(self, server: TrackedServer, model: str, *, moves: bool = True) -> None:
        """Mark a model whose residency and next action on a server may have changed, with its members or pipelines."""
        server.scheduler.unjudged.add(model)
        self.act_again(server, model, moves=moves)

    def act_again(self, server: TrackedServer, model: str, *, moves: bool = False) -> None:
        """Mark a model whose next action on a server may have changed, although its residency is decided."""
        related = tuple(self.graph.relatives(model))
        server.scheduler.unjudged.update(related)
        server.unplanned.update((model, *related))
        self.touch((model, *related), moves=moves)

    def plan_all_again(self, server: TrackedServer) -> None:
        """Mark all models on a server."""
        here = {model for model, place in server.places.items() if place.here}
        here = (here | server.present) & self.desired_state.keys()
        server.unplanned |= here
        server.scheduler.unjudged |= here
        self.moved.add(server.name)
        self.touch(here)

    def adopt(self, desired_deployment: DesiredDeployment) -> None:
        """Store a revision as the desired state."""
        model, spec = desired_deployment.model, desired_deployment.revision.spec
        self.desired_state[model] = desired_deployment
        if spec.deleted:
            self.deployed.pop(model, None)
        else:
            self.deployed[model] = desired_deployment.revision
        (self.trials.discard if spec.trial is None else self.trials.add)(model)
        promises = spec.settings.objectives is not None and not spec.deleted
        (self.promised.add if promises else self.promised.discard)(model)
        before = tuple(self.graph.relatives(model))
        self.graph.adopt(desired_deployment)
        self.touch({model, *before, *self.graph.relatives(model)})
        for server in self.servers.values():
            server.unplanned.update(before)
            server.scheduler.unjudged.update(before)

    def spec(self, model: str) -> DeploymentSpec | None:
        """Return the desired state of a model; None if it has no known deployment."""
        revision = self.deployed.get(model)
        return None if revision is None else revision.spec

    def update_residency(self, server: TrackedServer, limit: int) -> set[str]:
        """Update the residency decisions of up to ``limit`` marked models; return those whose decision changed.

        The others stay marked. Decisions that depend on what all models need follow with the last ones.
        """
        scheduler, now = server.scheduler, self.clock()
        scheduler.unjudged |= scheduler.due(now)
        names = sorted(scheduler.unjudged)[:limit]
        scheduler.unjudged.difference_update(names)
        pairs = []
        gone = []
        for model in names:
            refresh(self, server, model)
            desired_deployment = self.desired_state.get(model)
            if desired_deployment is not None and server.has_place(model):
                pairs.append((desired_deployment, server.unit(model)))
            else:
                gone.append(model)
        changed = scheduler.update_residency(pairs, now, gone=gone, last=not scheduler.unjudged)
        if scheduler.reworded:
            self.touch(scheduler.reworded, moves=False)
            scheduler.reworded.clear()
        return changed
