"""Number of replicas of a model: more while requests wait too long, fewer while it is idle. Pure.

Up: the mean queue time of a window is above the objective, and has been for `ScalingRules.up_seconds`. One replica is
added and the timer restarts, so that the new replica can take effect. Down: for `down_seconds` the mean was at most
half of the objective, and the request rate below `down_share` of the rate at which the replica was added; without the
second condition a replica that keeps the queue short would be removed for that. Between the two nothing happens, and
both timers restart. The minimum and the maximum always apply.
"""

from dataclasses import dataclass, replace
from datetime import datetime

_DEADBAND = 0.5
_FEW_WAITING = 0.02
"""Mean number of waiting requests (rate times wait) below which the wait is ignored.

So the waits of probes do not count, and a rare request does not add a replica that would be idle.
"""


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """Timing of the autoscaler.

    Attributes:
        up_seconds: How long the queue time stays above the objective before a replica is added.
        down_seconds: How long a model is idle enough before a replica is removed.
        down_share: A replica may be removed below this share of the rate at which it was added.
    """

    up_seconds: float = 15.0
    down_seconds: float = 300.0
    down_share: float = 0.7


@dataclass(frozen=True, slots=True)
class Window:
    """Triton's counters of a model over all its replicas, since the previous window.

    Attributes:
        requests: Requests that were answered.
        queue_seconds: Their total time in the queue.
        seconds: Length of the window.
    """

    requests: int
    queue_seconds: float
    seconds: float

    @property
    def queue_milliseconds(self) -> float:
        """Mean queue time of a request, in milliseconds."""
        return self.queue_seconds / self.requests * 1000 if self.requests else 0.0

    @property
    def waiting(self) -> float:
        """Mean number of waiting requests (Little's law)."""
        return self.queue_seconds / self.seconds if self.seconds > 0 else 0.0

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Scale:
    """The number of replicas with the autoscaler's state.

    Attributes:
        replicas: The number.
        above_since: Since when the queue time is above the objective.
        below_since: Since when the model is idle enough.
        rates: The request rate at which each replica beyond the minimum was added, newest last.
        why: The last change, as one sentence; empty before the first.
    """

    replicas: int
    above_since: datetime | None = None
    below_since: datetime | None = None
    rates: tuple[float, ...] = ()
    why: str = ""


def rescale(
    scale: Scale,
    window: Window,
    *,
    least: int,
    most: int,
    objective_milliseconds: float,
    now: datetime,
    rules: ScalingRules,
) -> Scale:
    """Return the number of replicas after a window.

    Args:
        scale: The state before.
        window: What was observed.
        least: The minimum number of replicas.
        most: The maximum number of replicas.
        objective_milliseconds: The mean queue time that is allowed.
        now: The time at the end of the window.
        rules: Timing.
    """
    bounded = min(max(scale.replicas, least), most)
    if bounded != scale.replicas:
        return Scale(bounded, rates=scale.rates[: max(bounded - least, 0)], why="")
    wait = window.queue_milliseconds if window.waiting >= _FEW_WAITING else 0.0
    if wait > objective_milliseconds:
        since = scale.above_since or now
        if (now - since).total_seconds() < rules.up_seconds or scale.replicas >= most:
            return replace(scale, above_since=since, below_since=None)
        why = (
            f"{scale.replicas + 1} since {now:%H:%M:%S} UTC: requests waited {wait:.0f} ms, more than the objective "
            f"of {objective_milliseconds:.3g} ms, for {(now - since).total_seconds():.0f} s"
        )
        return Scale(scale.replicas + 1, above_since=now, rates=(*scale.rates, window.rate), why=why)
    added_at = scale.rates[-1] if scale.rates else None
    idle = wait <= objective_milliseconds * _DEADBAND and (
        added_at is None or window.rate < added_at * rules.down_share
    )
    if not idle or scale.replicas <= least:
        return replace(scale, above_since=None, below_since=None)
    since = scale.below_since or now
    if (now - since).total_seconds() < rules.down_seconds:
        return replace(scale, above_since=None, below_since=since)
    why = (
        f"{scale.replicas - 1} since {now:%H:%M:%S} UTC: for {(now - since).total_seconds():.0f} s requests waited "
        f"at most half of the objective of {objective_milliseconds:.3g} ms, and the request rate was low "
        f"({window.rate:.3g}/s)"
    )
    return Scale(scale.replicas - 1, below_since=now, rates=scale.rates[:-1], why=why)
