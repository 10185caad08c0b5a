"""How many replicas of a model: more while requests wait longer than they may, fewer while it is idle. Pure.

Up: the mean queue time of a window is above the objective, and has been for `ScalingRules.up_seconds`. One replica
more, and the time starts anew, so that the new replica can show what it does. Down: for `down_seconds` the mean was at
most half of the objective, and the rate of requests less than `down_share` of the rate at which the copy was added;
without the second condition a replica that keeps the queue short would be taken away for that. In between nothing
happens, and both times start anew. The least and the largest number hold always.
"""

from dataclasses import dataclass, replace
from datetime import datetime

_DEADBAND = 0.5
_NOBODY = 0.02
"""Where fewer requests than this wait at a moment, in the mean (their rate times their wait), a single one's wait says
nothing: nobody waits. So the probes' own waits do not count, and a rare request brings no copy that would idle."""


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """How patient it is.

    Attributes:
        up_seconds: How long the queue time stays above the objective before a replica is added.
        down_seconds: How long a model is idle enough before a replica is taken away.
        down_share: Share of the rate at which a replica was added below which it may be taken away.
    """

    up_seconds: float = 15.0
    down_seconds: float = 300.0
    down_share: float = 0.7


@dataclass(frozen=True, slots=True)
class Window:
    """What Triton's counters showed of a model, all its replicas together, since the last look.

    Attributes:
        requests: Requests that were answered.
        queue_seconds: How long they had waited, summed.
        seconds: Length of the window.
    """

    requests: int
    queue_seconds: float
    seconds: float

    @property
    def queue_milliseconds(self) -> float:
        """Mean wait of a request."""
        return self.queue_seconds / self.requests * 1000 if self.requests else 0.0

    @property
    def waiting(self) -> float:
        """Requests that waited at a moment, in the mean (Little's law)."""
        return self.queue_seconds / self.seconds if self.seconds > 0 else 0.0

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Scale:
    """How many replicas, and since when things are as they are.

    Attributes:
        replicas: The number.
        above_since: Since when the queue time is above the objective.
        below_since: Since when the model is idle enough.
        rates: The rate at which each replica beyond the least number was added, the newest last.
        why: The newest change, as one sentence; empty before the first.
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
        scale: Before.
        window: What was seen.
        least: The least number of replicas.
        most: The largest number.
        objective_milliseconds: How long a request may wait in the mean.
        now: The time at the end of the window.
        rules: How patient to be.
    """
    bounded = min(max(scale.replicas, least), most)
    if bounded != scale.replicas:
        return Scale(bounded, rates=scale.rates[: max(bounded - least, 0)], why="")
    wait = window.queue_milliseconds if window.waiting >= _NOBODY else 0.0
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
        f"at most half of the objective of {objective_milliseconds:.3g} ms, and there were few ({window.rate:.3g}/s)"
    )
    return Scale(scale.replicas - 1, below_since=now, rates=scale.rates[:-1], why=why)
