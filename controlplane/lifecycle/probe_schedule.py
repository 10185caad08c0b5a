"""Schedules probes of active versions and summarizes their results. The decision is pure; `ProbeTracker` keeps the mutable state.

A probe sends the smallest golden sample. One probe is due in every interval, at a random moment, so that the models are
not all probed at once. A probe is skipped if real requests have just succeeded, but only a limited number of times in a
row, because real requests do not reveal drift. It is sent at once if real requests fail or a process is missing.
"""  # noqa: E501

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto

from controlplane.domain.health import HealthSummary, ProbeKind, ProbeOutcome, ProbeResult, percentile
from controlplane.domain.states import Proof
from controlplane.lifecycle.state import ProofStatus
from controlplane.triton.embedded.processes import InstanceMemory, since_boot
from controlplane.triton.statistics import VersionCounters, VersionKey

REMEMBERED = 240
"""Probes kept for each replica: two hours at the default interval."""
_EARLIEST = 0.8
"""A probe is due between this fraction of the interval and its end."""
MAX_SKIPS = 9
"""Maximum number of probes that are skipped in a row."""
_RECENT_POLLS = 3.0
"""A success counts as recent for this many polling intervals."""
_ALARM_SECONDS = 2.0
"""Minimum time between probes after an alarm: failing requests may be the fault of the client."""

_LEAVE_SECONDS = 30.0
"""Time that replaced processes have to exit after a load; Triton needs a second or two."""

_OUTCOMES = {
    ProofStatus.PASSED: ProbeOutcome.PASSED,
    ProofStatus.TIMED_OUT: ProbeOutcome.LATE,
    ProofStatus.MISMATCH: ProbeOutcome.WRONG,
}


_NO_PROBES = HealthSummary()
"""Shared by all replicas that were not probed."""


class ProbeDecision(Enum):
    """Decision about a probe."""

    NOTHING = auto()
    SKIP = auto()
    ASK = auto()


@dataclass(frozen=True, slots=True)
class ProbeSignals:
    """State of an active version, as input for the decision.

    Attributes:
        since_probe: Seconds since the last probe, sent or skipped.
        since_success: Seconds since a real request succeeded; None if no success is known.
        failing: Whether a real request failed since the last probe.
        missing: How many of its processes are missing.
        skips: Probes skipped in a row.
        spread: The jitter of this probe, from 0 to 1.
    """

    since_probe: float
    since_success: float | None = None
    failing: bool = False
    missing: int = 0
    skips: int = 0
    spread: float = 1.0


def due(signs: ProbeSignals, *, interval_seconds: float, poll_seconds: float) -> ProbeDecision:
    """Decide whether to probe a version now.

    Args:
        signs: The state of the version.
        interval_seconds: A probe at least once in this time.
        poll_seconds: Time between readings of the server's counters.
    """
    if signs.failing or signs.missing:
        return (
            ProbeDecision.ASK if signs.since_probe >= min(_ALARM_SECONDS, interval_seconds) else ProbeDecision.NOTHING
        )
    if signs.since_probe < interval_seconds * (_EARLIEST + (1 - _EARLIEST) * signs.spread):
        return ProbeDecision.NOTHING
    recent = signs.since_success is not None and signs.since_success <= _RECENT_POLLS * poll_seconds
    return ProbeDecision.SKIP if recent and signs.skips < MAX_SKIPS else ProbeDecision.ASK


@dataclass(slots=True)
class ProbeTracker:
    """Mutable probe state of one replica. Times are monotonic seconds.

    Attributes:
        asked_at: Time of the last probe, sent or skipped.
        results: The newest probe results.
        heals: How often the model was reloaded because it had stopped answering.
        last_heal_seconds: How long the newest of those recoveries took.
        missing: How many of its processes are missing, and how many there were.
    """

    asked_at: float = 0.0
    results: tuple[ProbeResult, ...] = ()
    skipped: int = 0
    heals: int = 0
    last_heal_seconds: float | None = None
    missing: tuple[int, int] = (0, 0)
    _summary: HealthSummary | None = None
    _skips: int = 0
    _spread: float = field(default_factory=random.random)
    _counts: dict[VersionKey, VersionCounters] = field(default_factory=dict)
    _ours: dict[bool, int] = field(default_factory=dict)
    _succeeded_at: float | None = None
    _failed_at: float | None = None
    _processes: dict[VersionKey, tuple[int, int]] = field(default_factory=dict)
    _load_began: float = 0.0
    _settled_at: float = 0.0
    _broken_at: float | None = None

    @property
    def alarming(self) -> bool:
        """Whether there is an alarm: a real request failed since the last probe, or a process is missing."""
        return self.missing[0] > 0 or (self._failed_at is not None and self._failed_at > self.asked_at)

    def signs(self, now: float) -> ProbeSignals:
        """Return the input for the decision."""
        return ProbeSignals(
            since_probe=now - self.asked_at,
            since_success=None if self._succeeded_at is None else now - self._succeeded_at,
            failing=self._failed_at is not None and self._failed_at > self.asked_at,
            missing=self.missing[0],
            skips=self._skips,
            spread=self._spread,
        )

    def due_in(self, interval_seconds: float, now: float) -> float:
        """Return the seconds until the next probe is due if there is no alarm; negative if it is due."""
        return self.asked_at + interval_seconds * (_EARLIEST + (1 - _EARLIEST) * self._spread) - now

    def skip(self, now: float) -> None:
        """Record a skipped probe."""
        self.asked_at, self._spread = now, random.random()
        self.skipped += 1
        self._summary = None
        self._skips += 1

    def asked(self, proof: Proof, mark: ProofStatus, *, light: bool, requests: int, now: float) -> None:
        """Record that the control plane sent a probe or proof to the active version."""
        self.asked_at, self._spread, self._skips = now, random.random(), 0
        answered = mark in {ProofStatus.PASSED, ProofStatus.MISMATCH}
        self._ours[answered] = self._ours.get(answered, 0) + requests
        self._summary = None
        compared = proof.outputs if proof.samples else ()
        result = ProbeResult(
            at=proof.at,
            version=proof.version,
            kind=ProbeKind.SAMPLE if light else ProbeKind.PROOF,
            outcome=_OUTCOMES.get(mark, ProbeOutcome.UNANSWERED),
            latency_seconds=proof.latency_seconds,
            max_absolute_error=max((one.max_absolute_error for one in compared), default=None),
            max_relative_error=max((one.max_relative_error for one in compared), default=None),
            message="" if mark is ProofStatus.PASSED else proof.message,
        )
        self.results = (*self.results, result)[-REMEMBERED:]

    def compared(self, requests: int) -> None:
        """Record the requests that a comparison with a new version sent to the active version."""
        self._ours[True] = self._ours.get(True, 0) + requests

    def broke(self, now: float) -> None:
        """Record that a healthy version stopped answering."""
        self._broken_at = now

    def answers(self, now: float) -> None:
        """Record a passed proof."""
        if self._broken_at is not None:
            self.heals += 1
            self._summary = None
            self.last_heal_seconds = now - self._broken_at
            self._broken_at = None

    def loaded(self, began: float = 0.0) -> None:
        """Reset the state after a load: processes and counters are new.

        Args:
            began: When the load began, in seconds since the machine started. Earlier processes belong to the replaced
                versions and exit, or to this version, if Triton did not need to load it again.
        """
        self._processes.clear()
        self._load_began, self._settled_at = began, since_boot() + _LEAVE_SECONDS
        self._counts.clear()
        self._ours.clear()
        self._succeeded_at = self._failed_at = None
        self.missing = (0, 0)

    def take_counters(self, key: VersionKey, counters: Mapping[VersionKey, VersionCounters], now: float) -> None:
        """Apply the newest counters of the active version. Must not be called during a probe or proof."""
        found = counters.get(key)
        before, self._counts = self._counts.get(key), {} if found is None else {key: found}
        ours, self._ours = self._ours, {}
        if found is None or before is None or found.requests < before.requests:
            return
        failed = found.failures - before.failures - ours.get(False, 0)
        succeeded = found.requests - found.failures - before.requests + before.failures - ours.get(True, 0)
        if failed > 0:
            self._failed_at = now
        elif succeeded > 0:
            self._succeeded_at = now

    def take_processes(
        self, key: VersionKey, instances: Mapping[VersionKey, InstanceMemory], now: float | None = None
    ) -> None:
        """Apply the process count of the active version. Every process that it ever had must stay.

        Args:
            key: The version.
            instances: All processes of the server.
            now: Seconds since the machine started; None reads the clock.
        """
        found = instances.get(key, InstanceMemory(0, 0, 0))
        old = sum(at < self._load_began for at in found.started)
        new = found.processes - old
        most_new, most_old = self._processes.get(key, (0, 0))
        if (since_boot() if now is None else now) < self._settled_at:
            most_old = 0  # exiting processes are no fault
        most_new, most_old = max(most_new, new), max(most_old, old)
        self._processes = {key: (most_new, most_old)}
        self.missing = (most_new + most_old - found.processes, most_new + most_old)

    def summary(self) -> HealthSummary:
        """Return a summary of the kept results. Frequently requested, so it is cached until the results change."""
        if self._summary is None:
            self._summary = self._summed() if self.results or self.skipped or self.heals else _NO_PROBES
        return self._summary

    def _summed(self) -> HealthSummary:
        passed = [one.latency_seconds for one in self.results if one.outcome is ProbeOutcome.PASSED]
        failed = [one for one in self.results if one.outcome is not ProbeOutcome.PASSED]
        absolute = [one.max_absolute_error for one in self.results if one.max_absolute_error is not None]
        relative = [one.max_relative_error for one in self.results if one.max_relative_error is not None]
        return HealthSummary(
            probes=len(self.results),
            failed=len(failed),
            skipped=self.skipped,
            p50_seconds=percentile(passed, 0.5),
            p99_seconds=percentile(passed, 0.99),
            drift_absolute=max(absolute, default=None),
            drift_relative=max(relative, default=None),
            newest=self.results[-1] if self.results else None,
            last_failure=failed[-1] if failed else None,
            heals=self.heals,
            last_heal_seconds=self.last_heal_seconds,
        )


def gone(missing: tuple[int, int], at: datetime, version: int) -> Proof:
    """Return a failed proof for a version some of whose processes are missing while others still answer."""
    lost, of = missing
    return Proof(
        version=version,
        agrees=False,
        at=at,
        latency_seconds=0.0,
        samples=0,
        message=f"exited processes still receive requests: {lost} of {of}",
    )
