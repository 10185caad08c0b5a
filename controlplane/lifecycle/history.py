"""State kept for one model on one server between observations. Frozen; every change returns a copy.

Correctness after a restart does not depend on it: forgotten versions are proved again.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from controlplane.domain.states import Proof
from controlplane.lifecycle.actions import Load
from controlplane.lifecycle.state import Failure, ProofStatus, Target

CRASH_WINDOW = timedelta(minutes=10)
"""A version that stops answering twice within this window is reloaded with back-off."""
_CRASHES_KEPT = 16


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pause after consecutive failures: ``initial * 2**(count - 1)``, at most ``maximum``. In seconds."""

    initial_seconds: float
    maximum_seconds: float

    def until(self, now: datetime, count: int) -> datetime:
        """Return the time of the next try after the ``count``-th failure."""
        seconds = min(self.initial_seconds * 2.0 ** min(count - 1, 60), self.maximum_seconds)
        return now + timedelta(seconds=seconds)


@dataclass(frozen=True, slots=True)
class ReplicaHistory:
    """Proofs, failures and the last switch; see `controlplane.lifecycle.state.ObservedReplica` for the fields."""

    marks: dict[int, ProofStatus] = field(default_factory=dict)
    candidate_mark: ProofStatus = ProofStatus.UNPROVED
    cleared: frozenset[Target] = frozenset()
    failures: dict[Target, Failure] = field(default_factory=dict)
    switched: tuple[int, datetime] | None = None
    good: Target | None = None
    proof: Proof | None = None
    hold_until: datetime | None = None
    holds: int = 0
    crashes: dict[Target, tuple[datetime, ...]] = field(default_factory=dict)

    def seen(self, loaded: Iterable[int], *, digest_changed: bool, candidate: bool) -> "ReplicaHistory":
        """Drop the proof results of versions that are no longer loaded or were loaded again by another client."""
        loaded = set(loaded)
        marks = {} if digest_changed else {v: mark for v, mark in self.marks.items() if v in loaded}
        candidate_mark = self.candidate_mark if candidate else ProofStatus.UNPROVED
        if marks == self.marks and candidate_mark is self.candidate_mark:
            return self
        return replace(self, marks=marks, candidate_mark=candidate_mark)

    def server_lost(self) -> "ReplicaHistory":
        """Drop all proof results because the server was down: models that it runs next are unproved."""
        return replace(
            self, marks={}, candidate_mark=ProofStatus.UNPROVED, cleared=frozenset(), hold_until=None, holds=0
        )

    def wanted_again(self, target: Target) -> "ReplicaHistory":
        """Clear the failures of a target, because a new or repeated request gives it another chance."""
        failures = {key: failure for key, failure in self.failures.items() if key != target}
        crashes = {key: times for key, times in self.crashes.items() if key != target}
        return replace(self, failures=failures, crashes=crashes, hold_until=None, holds=0)

    def after_load(
        self, action: Load, *, before: frozenset[int], digest: str | None, now: datetime
    ) -> "ReplicaHistory":
        """Record a successful load.

        Args:
            action: The load.
            before: The versions that were loaded under its name before the load.
            digest: Their configuration digest.
            now: The present time (UTC).
        """
        if action.candidate:
            return replace(self, candidate_mark=ProofStatus.UNPROVED)
        renewed = action.reload or (digest or "") != action.target.digest
        marks = {} if renewed else {v: mark for v, mark in self.marks.items() if v in action.versions}
        switched = self.switched
        if max(action.versions) != max(before, default=None):
            # Another version is active now: it is proved again, even if it was proved before.
            marks.pop(max(action.versions), None)
            switched = (max(action.versions), now)
        return replace(self, marks=marks, switched=switched)

    def after_proof(
        self, target: Target, mark: ProofStatus, proof: Proof, *, candidate: bool, now: datetime, backoff: Backoff
    ) -> "ReplicaHistory":
        """Record the result of a proof.

        A wrong answer is final. A version that stops answering is reloaded once immediately, then with back-off, even
        if each reload helps for a while, as with a process that crashes on some of its requests.
        """
        if mark is ProofStatus.PASSED:
            failures = {key: failure for key, failure in self.failures.items() if key != target}
            passed = replace(self, cleared=self.cleared | {target}, failures=failures, proof=proof)
            if candidate:
                return replace(passed, candidate_mark=mark)
            return replace(passed, marks={**self.marks, target.version: mark}, good=target)
        known = self.failures.get(target)
        count = known.count + 1 if known else 1
        crashes, message = self.crashes, proof.message
        if mark.final:
            retry_at = None
        elif not candidate and self.marks.get(target.version) is ProofStatus.PASSED:
            recent = tuple(at for at in crashes.get(target, ()) if now - at < CRASH_WINDOW)
            crashes = {**crashes, target: (*recent, now)[-_CRASHES_KEPT:]}
            retry_at, count = (backoff.until(now, len(recent)), len(recent)) if recent else (now, 0)
            if recent:
                minutes = CRASH_WINDOW.total_seconds() / 60
                message = f"it stopped answering {len(recent) + 1} times within {minutes:g} minutes: {message}"
        else:
            retry_at = backoff.until(now, max(count, 1))
        failure = Failure(count, message, retry_at)
        failed = replace(
            self,
            cleared=self.cleared - {target},
            failures={**self.failures, target: failure},
            proof=proof,
            good=None if self.good == target and mark.final else self.good,
            crashes=crashes,
        )
        if candidate:
            return replace(failed, candidate_mark=mark)
        return replace(failed, marks={**self.marks, target.version: mark})

    def after_failure(
        self, target: Target, message: str, *, final: bool, now: datetime, backoff: Backoff
    ) -> "ReplicaHistory":
        """Record that fetching, staging or loading a target failed."""
        known = self.failures.get(target)
        count = known.count + 1 if known else 1
        failure = Failure(count, message, None if final else backoff.until(now, count))
        return replace(self, cleared=self.cleared - {target}, failures={**self.failures, target: failure})

    def held(self, *, now: datetime, backoff: Backoff) -> "ReplicaHistory":
        """Record the failure of a step without a target: an unload, a clean-up, or a call to an unavailable server."""
        return replace(self, hold_until=backoff.until(now, self.holds + 1), holds=self.holds + 1)

    def released(self) -> "ReplicaHistory":
        """Record a success: the next failure starts the back-off from its beginning."""
        return self if not self.holds else replace(self, hold_until=None, holds=0)
