"""Metrics of the loop itself: time per kind of message, and how far the observed state lags behind the desired one."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from controlplane.domain.states import DeploymentStatus, Phase
from controlplane.reconciler.cycle import CycleReport
from controlplane.registry.deployments import DeploymentRevision

BOUNDS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0)
"""Upper bounds of the buckets, in seconds; one more bucket holds larger values."""


_COUNTED = ("rounds", "placed", "judged", "planned", "began", "granted", "evicted", "refused")


@dataclass
class HandlerTimings:
    """Times of the messages of one kind.

    Attributes:
        buckets: Number of messages by duration, see `BOUNDS`.
        seconds: Total duration.
    """

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0


class LoopMetrics:
    """Counts what the loop handles. Only the loop writes it."""

    def __init__(self) -> None:
        self.beats: dict[str, HandlerTimings] = {}
        self.cycles = Counter[str]()
        """Totals of all cycles, by the fields of `CycleReport`."""

    def cycle(self, report: CycleReport, seconds: float) -> None:
        """Count one cycle."""
        self.beat("Cycle", seconds)
        for name in _COUNTED:
            self.cycles[name] += getattr(report, name)

    def beat(self, kind: str, seconds: float) -> None:
        """Count one message."""
        beats = self.beats.get(kind)
        if beats is None:
            beats = self.beats[kind] = HandlerTimings()
        beats.buckets[bisect_left(BOUNDS, seconds)] += 1
        beats.seconds += seconds


class PropagationLag:
    """Tracks since when deployments differ from their desired state. The caller passes the time.

    Only changed and lagging deployments are checked.
    """

    def __init__(self) -> None:
        self._since: dict[str, datetime] = {}
        self._reached: dict[str, int] = {}

    def see(
        self,
        now: datetime,
        changed: Iterable[str],
        wanted: Mapping[str, DeploymentRevision],
        status: Callable[[str], DeploymentStatus | None],
    ) -> dict[str, float]:
        """Apply changes, and return by how many seconds each lagging deployment lags.

        A new revision lags since its commit; one that was reached before lags since the first time it was seen to
        differ.

        Args:
            now: The time.
            changed: Deployments that may have changed since the last call.
            wanted: The desired revisions by model.
            status: Gives the status of a deployment.
        """
        for model in {*changed, *self._since}:
            revision, found = wanted.get(model), status(model)
            if revision is None:
                self._since.pop(model, None)
                self._reached.pop(model, None)
            elif found is not None and found.revision >= revision.number and found.phase in _REACHED:
                self._reached[model] = revision.number
                self._since.pop(model, None)
            elif model not in self._since:
                fell = self._reached.get(model) == revision.number
                self._since[model] = now if fell else revision.at
        return {model: max((now - since).total_seconds(), 0.0) for model, since in self._since.items()}


_REACHED = frozenset({Phase.READY, Phase.UNLOADED})
