"""A pure model of what Triton does with loads and unloads, for property tests of the planner.

It replaces no test with a real server: tests/reconciler/test_rollouts.py runs the same sequences on a real Triton.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum

from controlplane.domain.states import Proof
from controlplane.lifecycle.actions import Action, CleanUp, Load, Prove, Stage, Unload, Wait
from controlplane.lifecycle.history import Backoff, ReplicaHistory
from controlplane.lifecycle.planner import plan
from controlplane.lifecycle.state import DesiredReplica, ObservedReplica, ProofStatus, Target

BACKOFF = Backoff(2.0, 300.0)


class Nature(Enum):
    """The real behaviour of a target, independent of what the control plane believes."""

    GOOD = "good"
    WRONG = "wrong"
    REFUSES = "refuses"
    MUTE = "mute"


@dataclass
class SimulatedTriton:
    """Loaded versions and configuration by name, folders on disk, dead processes."""

    natures: dict[Target, Nature]
    loaded: set[int] = field(default_factory=set)
    digest: str | None = None
    candidate: int | None = None
    candidate_digest: str | None = None
    staged: set[int] = field(default_factory=set)
    candidate_staged: set[int] = field(default_factory=set)
    dead: set[int] = field(default_factory=set)
    leaving: set[int] = field(default_factory=set)
    candidate_leaving: bool = False
    loading: bool = False
    gpu: int = 0

    def nature(self, version: int, digest: str | None) -> Nature:
        return self.natures.get(Target(version, digest or ""), Nature.GOOD)

    def settle(self) -> None:
        """Let time pass: finish all unloads."""
        self.leaving.clear()
        self.candidate_leaving = False
        self.loading = False

    def replicas(self) -> int:
        return len(self.loaded) + len(self.leaving) + (self.candidate is not None) + self.candidate_leaving


@dataclass
class World:
    """One model on one server with its control plane."""

    triton: SimulatedTriton
    now: datetime
    record: ReplicaHistory = field(default_factory=ReplicaHistory)
    proven_here: set[Target] = field(default_factory=set)
    peak_replicas: int = 0
    place: int = 0
    """The GPU that it should be on."""

    def observe(self) -> ObservedReplica:
        t = self.triton
        self.record = self.record.seen(t.loaded, digest_changed=False, candidate=t.candidate is not None)
        r = self.record
        return ObservedReplica(
            loaded=frozenset(t.loaded),
            digest=t.digest if t.loaded else None,
            loading=t.loading,
            leaving=frozenset(t.leaving),
            staged=frozenset(t.staged),
            marks=dict(r.marks),
            candidate=t.candidate,
            candidate_digest=t.candidate_digest if t.candidate else None,
            candidate_leaving=t.candidate_leaving,
            candidate_staged=frozenset(t.candidate_staged),
            candidate_mark=r.candidate_mark,
            cleared=r.cleared,
            failures=dict(r.failures),
            switched=r.switched,
            hold_until=r.hold_until,
        )

    def answering(self) -> Target | None:
        t = self.triton
        return Target(max(t.loaded), t.digest or "") if t.loaded else None

    def step(self, desired: DesiredReplica) -> Action | None:
        observed = self.observe()
        elsewhere = bool(self.triton.loaded) and self.triton.gpu != self.place
        desired = replace(desired, relocation_reason="it has another assignment" if elsewhere else "")
        action = plan(desired, observed, self.now)
        if action is not None:
            self.apply(action, observed)
        self.peak_replicas = max(self.peak_replicas, self.triton.replicas())
        return action

    def apply(self, action: Action, observed: ObservedReplica) -> None:
        t = self.triton
        match action:
            case Wait():
                t.settle()
            case Stage(target=target, candidate=candidate):
                (t.candidate_staged if candidate else t.staged).add(target.version)
            case Load(candidate=True, target=target):
                assert t.candidate is None
                assert target.version in t.candidate_staged
                if self._refuses(target):
                    return
                t.candidate, t.candidate_digest = target.version, target.digest
                self.record = self.record.after_load(action, before=frozenset(), digest=None, now=self.now)
            case Load(target=target, versions=versions):
                same = (t.digest or "") == target.digest
                added = set(versions) - t.loaded if same else set(versions)
                assert added <= t.staged, "Triton would find no folder"
                assert not (added & t.leaving)
                if any(self.nature_refuses(version, target) for version in added):
                    self._refuses(target, force=True)
                    return
                renewed = added if same and not action.reload else set(versions)
                if renewed:
                    stay = t.loaded & set(versions) - renewed
                    assert not stay or t.gpu == self.place, "a kept version would move without a memory reservation"
                    t.gpu = self.place
                t.dead -= renewed
                t.leaving |= t.loaded - set(versions)
                before, digest = frozenset(t.loaded), t.digest
                # During a reload both versions are in memory.
                self.peak_replicas = max(self.peak_replicas, len(before) + len(renewed) + (t.candidate is not None))
                t.loaded, t.digest = set(versions), target.digest or None
                self.record = self.record.after_load(action, before=before, digest=digest, now=self.now)
            case Prove(target=target, candidate=candidate):
                self._prove(target, candidate)
            case Unload(candidate=True):
                t.candidate, t.candidate_leaving = None, True
            case Unload():
                t.leaving |= t.loaded
                t.loaded.clear()
                t.dead.clear()
            case CleanUp(versions=versions, candidate=candidate, model=model):
                gone = t.staged if model else set(versions)
                assert not (gone & t.loaded), "a folder in use was removed"
                t.staged -= gone
                if candidate:
                    assert t.candidate is None
                    t.candidate_staged.clear()
                if model:
                    assert not t.loaded
                    t.staged.clear()

    def nature_refuses(self, version: int, target: Target) -> bool:
        return self.triton.nature(version, target.digest) is Nature.REFUSES

    def _refuses(self, target: Target, *, force: bool = False) -> bool:
        if not force and not self.nature_refuses(target.version, target):
            return False
        self.record = self.record.after_failure(target, "refused", final=False, now=self.now, backoff=BACKOFF)
        return True

    def _prove(self, target: Target, candidate: bool) -> None:
        t = self.triton
        nature = t.nature(target.version, target.digest)
        mark = {
            Nature.GOOD: ProofStatus.PASSED,
            Nature.WRONG: ProofStatus.MISMATCH,
            Nature.MUTE: ProofStatus.UNRESPONSIVE,
        }.get(nature, ProofStatus.PASSED)
        if candidate:
            assert t.candidate == target.version
        else:
            assert target.version in t.loaded
            if target.version in t.dead:
                mark = ProofStatus.UNRESPONSIVE
        if mark is ProofStatus.PASSED:
            self.proven_here.add(target)
        proof = Proof(
            version=target.version, agrees=mark is ProofStatus.PASSED, at=self.now, latency_seconds=0.001, samples=1,
            message=mark.value,
        )  # fmt: skip
        self.record = self.record.after_proof(target, mark, proof, candidate=candidate, now=self.now, backoff=BACKOFF)

    # external changes

    def restart_triton(self) -> None:
        t = self.triton
        t.loaded.clear()
        t.dead.clear()
        t.candidate = None
        t.settle()
        self.record = self.record.server_lost()
        self.proven_here.clear()

    def restart_control_plane(self) -> None:
        self.record = ReplicaHistory()

    def external_unload(self) -> None:
        self.triton.loaded.clear()
        self.triton.dead.clear()

    def kill_processes(self) -> None:
        """Kill the processes of all loaded versions and record what the next periodic probe finds."""
        t = self.triton
        t.dead |= t.loaded
        answering = self.answering()
        if answering and self.record.marks.get(answering.version) is ProofStatus.PASSED:
            self._prove(answering, candidate=False)

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.triton.settle()
