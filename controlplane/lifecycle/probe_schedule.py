"""When a version that answers is asked again, and what its probes found. The decision is pure; `ProbeTracker` remembers.

A probe asks the smallest golden sample. It is due once in every interval, at a moment that is drawn for each anew, so
that many models are not asked at once; it is left out where real requests have just succeeded, though not for ever,
because real requests do not tell of drift; and it is asked at once where real requests fail, or a process is gone.
"""  # noqa: E501

import random
from collections import deque
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
"""Probes kept for each model on each server: two hours at the default interval."""
_EARLIEST = 0.8
"""A probe is due between this share of the interval and its end."""
MAX_SKIPS = 9
"""So many probes in a row are left out at most."""
_RECENT_POLLS = 3.0
"""A success is recent for so many times the interval between polls."""
_ALARM_SECONDS = 2.0
"""What looks sick is asked no more often than this: requests that fail may be the fault of who sends them."""

_LEAVE_SECONDS = 30.0
"""After a load, what was loaded in its place has this time to leave; it takes Triton a second or two."""

_OUTCOMES = {
    ProofStatus.PASSED: ProbeOutcome.PASSED,
    ProofStatus.LATE: ProbeOutcome.LATE,
    ProofStatus.WRONG: ProbeOutcome.WRONG,
}


class ProbeDecision(Enum):
    """What to do about a probe."""

    NOTHING = auto()
    SKIP = auto()
    ASK = auto()


@dataclass(frozen=True, slots=True)
class ProbeSignals:
    """What is known of a version that answers.

    Attributes:
        since_probe: Seconds since it was asked, or since a probe was left out.
        since_success: Seconds since a real request succeeded; None where none is known of.
        failing: Whether a real request failed since it was asked.
        missing: How many of its processes are gone.
        skips: Probes left out in a row.
        spread: This probe's own share of the jitter, from 0 to 1.
    """

    since_probe: float
    since_success: float | None = None
    failing: bool = False
    missing: int = 0
    skips: int = 0
    spread: float = 1.0


def due(signs: ProbeSignals, *, interval_seconds: float, poll_seconds: float) -> ProbeDecision:
    """Decide whether a version is asked now.

    Args:
        signs: What is known of it.
        interval_seconds: A probe at least once in this time.
        poll_seconds: Time between looks at the server's counters.
    """
    if signs.failing or signs.missing:
        return (
            ProbeDecision.ASK if signs.since_probe >= min(_ALARM_SECONDS, interval_seconds) else ProbeDecision.NOTHING
        )
    if signs.since_probe < interval_seconds * (_EARLIEST + (1 - _EARLIEST) * signs.spread):
        return ProbeDecision.NOTHING
    recent = signs.since_success is not None and signs.since_success <= _RECENT_POLLS * poll_seconds
    return ProbeDecision.SKIP if recent and signs.skips < MAX_SKIPS else ProbeDecision.ASK


@dataclass
class ProbeTracker:
    """What is remembered of one model on one server. Times are monotonic seconds.

    Attributes:
        asked_at: When it was asked last, or a probe was left out.
        results: The newest probes.
        heals: How often it was loaded again because it had stopped answering.
        last_heal_seconds: How long the newest of those took.
        missing: How many of its processes are gone, and how many there were.
    """

    asked_at: float = 0.0
    results: deque[ProbeResult] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
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
        """Whether something looks sick: a real request failed since it was asked, or a process is gone."""
        return self.missing[0] > 0 or (self._failed_at is not None and self._failed_at > self.asked_at)

    def signs(self, now: float) -> ProbeSignals:
        """Return what the decision needs."""
        return ProbeSignals(
            since_probe=now - self.asked_at,
            since_success=None if self._succeeded_at is None else now - self._succeeded_at,
            failing=self._failed_at is not None and self._failed_at > self.asked_at,
            missing=self.missing[0],
            skips=self._skips,
            spread=self._spread,
        )

    def due_in(self, interval_seconds: float, now: float) -> float:
        """Return in how many seconds its next probe is due if nothing looks sick; below 0: it is due."""
        return self.asked_at + interval_seconds * (_EARLIEST + (1 - _EARLIEST) * self._spread) - now

    def skip(self, now: float) -> None:
        """A probe was left out."""
        self.asked_at, self._spread = now, random.random()
        self.skipped += 1
        self._summary = None
        self._skips += 1

    def asked(self, proof: Proof, mark: ProofStatus, *, light: bool, requests: int, now: float) -> None:
        """The version that answers was asked by us."""
        self.asked_at, self._spread, self._skips = now, random.random(), 0
        answered = mark in {ProofStatus.PASSED, ProofStatus.WRONG}
        self._ours[answered] = self._ours.get(answered, 0) + requests
        self._summary = None
        compared = proof.outputs if proof.samples else ()
        self.results.append(
            ProbeResult(
                at=proof.at,
                version=proof.version,
                kind=ProbeKind.SAMPLE if light else ProbeKind.PROOF,
                outcome=_OUTCOMES.get(mark, ProbeOutcome.UNANSWERED),
                latency_seconds=proof.latency_seconds,
                max_absolute_error=max((one.max_absolute_error for one in compared), default=None),
                max_relative_error=max((one.max_relative_error for one in compared), default=None),
                message="" if mark is ProofStatus.PASSED else proof.message,
            )
        )

    def compared(self, requests: int) -> None:
        """The version that answers was asked so often by us, to compare a new one with it."""
        self._ours[True] = self._ours.get(True, 0) + requests

    def broke(self, now: float) -> None:
        """It was healthy, and has stopped answering."""
        self._broken_at = now

    def answers(self, now: float) -> None:
        """It passed its proof."""
        if self._broken_at is not None:
            self.heals += 1
            self._summary = None
            self.last_heal_seconds = now - self._broken_at
            self._broken_at = None

    def loaded(self, began: float = 0.0) -> None:
        """It was loaded: its processes and counters are new ones.

        Args:
            began: When the load began, in seconds since the machine started. Processes from before are those of what
                was loaded in its place, and leave, or its own still, where Triton had no need to load it anew.
        """
        self._processes.clear()
        self._load_began, self._settled_at = began, since_boot() + _LEAVE_SECONDS
        self._counts.clear()
        self._ours.clear()
        self._succeeded_at = self._failed_at = None
        self.missing = (0, 0)

    def take_counters(self, key: VersionKey, counters: Mapping[VersionKey, VersionCounters], now: float) -> None:
        """Take in the newest counters of the version that answers; not while we ask it ourselves."""
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
        """Take in how many processes the version that answers has. All that it ever had must stay.

        Args:
            key: The version.
            instances: All processes of the server.
            now: Seconds since the machine started; None asks the clock.
        """
        found = instances.get(key, InstanceMemory(0, 0, 0))
        old = sum(at < self._load_began for at in found.started)
        new = found.processes - old
        most_new, most_old = self._processes.get(key, (0, 0))
        if (since_boot() if now is None else now) < self._settled_at:
            most_old = 0  # that those are leaving is no fault
        most_new, most_old = max(most_new, new), max(most_old, old)
        self._processes = {key: (most_new, most_old)}
        self.missing = (most_new + most_old - found.processes, most_new + most_old)

    def summary(self) -> HealthSummary:
        """Say what the remembered probes found. It is asked for often, so it is made once for each change."""
        if self._summary is None:
            self._summary = self._summed()
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
    """Return the proof's counterpart for a version some of whose processes are gone, though others answer."""
    lost, of = missing
    return Proof(
        version=version,
        agrees=False,
        at=at,
        latency_seconds=0.0,
        samples=0,
        message=f"{lost} of its {of} processes {'is' if lost == 1 else 'are'} gone, and get requests all the same",
    )
