"""Pipelines on the servers: which members each needs there, and what follows for both. Pure over the loop's state.

A member that a pipeline needs is loaded and stays loaded, in the pinned version; the pipeline is loaded after its
members and unloaded before them. Triton itself takes an ensemble down with a member, so the order keeps a pipeline from
being served half (2.51: docs/internals/triton.md).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from controlplane.lifecycle.desired import DesiredDeployment
from controlplane.lifecycle.state import ProofStatus, Target

if TYPE_CHECKING:
    from controlplane.reconciler.loop_state import LoopState
    from controlplane.reconciler.server_state import TrackedServer


@dataclass
class MemberGraph:
    """Pipelines and their members, by name, over all revisions that are prepared.

    Attributes:
        members: The members of each pipeline.
        pipelines: The pipelines of each member.
    """

    members: dict[str, frozenset[str]] = field(default_factory=dict)
    pipelines: dict[str, set[str]] = field(default_factory=dict)

    def adopt(self, desired_deployment: DesiredDeployment) -> None:
        """Follow a new revision of a deployment."""
        model = desired_deployment.model
        now = frozenset(name for one in desired_deployment.prepared.values() for name in one.settings.members)
        for member in self.members.get(model, frozenset()) - now:
            self.pipelines[member].discard(model)
        for member in now:
            self.pipelines.setdefault(member, set()).add(model)
        if now:
            self.members[model] = now
        else:
            self.members.pop(model, None)

    def relatives(self, model: str) -> Iterable[str]:
        """Return the members of a pipeline, and the pipelines of a member."""
        return (*self.members.get(model, ()), *self.pipelines.get(model, ()))


def refresh(state: "LoopState", server: "TrackedServer", model: str) -> None:
    """Determine what a model's pipelines need of it on a server, and whether its own members are there to be loaded."""
    by: dict[str, set[int]] = {}
    users = []
    for pipeline in sorted(state.graph.pipelines.get(model, ())):
        used = _in_use(state, server, pipeline).get(model, set())
        versions = used | _wanted_pins(state, server, pipeline).get(model, set())
        if used:
            users.append(pipeline)
        if versions:
            by[pipeline] = versions
    server.need(model, frozenset(version for versions in by.values() for version in versions), tuple(by), tuple(users))
    if model in state.graph.members:
        server.set_broken(model, _broken(state, model))
        wanted = _wanted(state, server, state.desired_state[model])
        server.scheduler.set_unit(model, _unit(state, server, model), wanted=wanted)


def obstacle(state: "LoopState", server: "TrackedServer", model: str, target: Target) -> tuple[str, bool]:
    """Return why a pipeline cannot be loaded on a server yet, and whether that needs a change; empty if it can."""
    for member, version in _pins(state, model, target).items():
        if why := _absence(server, member, version):
            unit = server.units.get(member)
            failure = (
                next((one for key, one in unit.record.failures.items() if key.version == version), None)
                if unit
                else None
            )
            refused = server.scheduler.model_state(member).ticket.refused
            stuck = refused or (failure.message if failure is not None and failure.blocks(state.clock()) else "")
            return f"waits for its member {member}:{version}, which {why}" + (f": {stuck}" if stuck else ""), bool(
                stuck
            )
    return "", False


def _absence(server: "TrackedServer", member: str, version: int) -> str:
    """Return what a member's version lacks to answer a pipeline's requests on a server; empty if nothing."""
    if not server.has_place(member):
        return f"is not placed on {server.name}"
    unit = server.units.get(member)
    if unit is None or unit.facts is None or version not in unit.facts.loaded:
        return "is not loaded"
    if server.scheduler.model_state(member).residency.engaged:
        return "is being unloaded"
    mark = unit.facts.with_record(unit.record).mark(version)
    if mark is ProofStatus.UNPROVED:
        return "is not proved yet"
    return "" if mark is ProofStatus.PASSED else "failed its proof"


def _pins(state: "LoopState", model: str, target: Target | None) -> Mapping[str, int]:
    desired_deployment = state.desired_state.get(model)
    prepared = desired_deployment.prepared.get(target) if desired_deployment is not None and target else None
    return prepared.settings.members if prepared is not None else {}


def _in_use(state: "LoopState", server: "TrackedServer", pipeline: str) -> dict[str, set[int]]:
    """Return the members' versions that a pipeline's loaded configurations name on a server."""
    unit, desired_deployment = server.units.get(pipeline), state.desired_state.get(pipeline)
    if unit is None or unit.facts is None or desired_deployment is None:
        return {}
    facts = unit.facts
    found: dict[str, set[int]] = {}
    for target, prepared in desired_deployment.prepared.items():
        loaded = target.digest == facts.digest and target.version in facts.loaded
        candidate = target.digest == facts.candidate_digest and target.version == facts.candidate
        for member, version in prepared.settings.members.items() if loaded or candidate else ():
            found.setdefault(member, set()).add(version)
    return found


def _wanted_pins(state: "LoopState", server: "TrackedServer", pipeline: str) -> dict[str, set[int]]:
    """Return the members' versions that a pipeline needs to become or stay loaded on a server as desired."""
    found: dict[str, set[int]] = {}
    desired_deployment = state.desired_state.get(pipeline)
    if desired_deployment is None or not _wanted(state, server, desired_deployment):
        return found
    for target in (desired_deployment.wanted, desired_deployment.trial):
        for member, version in _pins(state, pipeline, target).items():
            found.setdefault(member, set()).add(version)
    return found


def _wanted(state: "LoopState", server: "TrackedServer", desired_deployment: DesiredDeployment) -> bool:
    spec, model = desired_deployment.revision.spec, desired_deployment.model
    if spec.deleted or not spec.loaded or not server.has_place(model) or _broken(state, model):
        return False
    verdict, unit = server.scheduler.desired(model), server.units.get(model)
    failure = unit.record.failures.get(desired_deployment.wanted) if unit is not None else None
    if failure is not None and failure.blocks(state.clock()):
        return False
    return verdict is not None and verdict.loaded


def _broken(state: "LoopState", pipeline: str) -> str:
    """Return why a pipeline cannot be loaded anywhere: a member is not deployed, or unloaded; empty if it can."""
    desired_deployment = state.desired_state.get(pipeline)
    if desired_deployment is None or not desired_deployment.targets:
        return ""
    for member in _pins(state, pipeline, desired_deployment.wanted):
        spec = state.spec(member)
        if spec is None or not spec.loaded:
            return f"its member {member} is {'not deployed' if spec is None else 'unloaded'}"
    return ""


def _unit(state: "LoopState", server: "TrackedServer", pipeline: str) -> dict[str, int]:
    """Return the pinned version of each member of a pipeline that is placed on a server and not loaded; else empty."""
    desired_deployment, unit = state.desired_state[pipeline], server.units.get(pipeline)
    loaded = unit is not None and unit.facts is not None and bool(unit.facts.loaded)
    if loaded or not desired_deployment.targets or not server.has_place(pipeline):
        return {}
    return dict(_pins(state, pipeline, desired_deployment.wanted))
