"""Evaluates objectives by burn rates over pairs of windows. Pure.

The method and the default windows are those of chapter 5, "Alerting on SLOs", of Google's SRE workbook ("6:
Multiwindow, Multi-Burn-Rate Alerts", https://sre.google/workbook/alerting-on-slos/): a burn rate is the share of bad
requests divided by the share that may be bad; an objective burns when the rate reaches the factor over a long window
(it is not a blip) and over a short one (it is still going on). The workbook's third pair, 3 days and 6 hours, is left
to Prometheus, because the windows here cover six hours.
"""

from collections.abc import Callable, Sequence

from controlplane.domain.deployment import Objectives
from controlplane.domain.metrics import ObjectiveKind, ObjectiveState, WindowBurn
from controlplane.settings import BurnRule

LATENCY_BUDGET = 0.01
"""One request in a hundred may be slower than the 99th percentile."""

BadOf = Callable[[float], tuple[float, float]]
"""Returns, for a window in seconds, how many requests were bad, and for how many this is known."""


def judge(
    objectives: Objectives, *, slow: BadOf, failed: BadOf, rules: Sequence[BurnRule], min_requests: float
) -> tuple[ObjectiveState, ...]:
    """Return the state of each objective.

    Args:
        objectives: The objectives.
        slow: Counts the requests that were slower than the p99 objective.
        failed: Counts those that failed.
        rules: Pairs of windows.
        min_requests: With fewer requests than this in the short window an objective does not burn.
    """
    found = []
    if objectives.p99_milliseconds is not None:
        target = f"99 in 100 requests take no longer than {objectives.p99_milliseconds:g} ms"
        found.append(_judge(ObjectiveKind.LATENCY, target, LATENCY_BUDGET, slow, rules, min_requests))
    if objectives.failure_percent is not None:
        target = f"no more than {objectives.failure_percent:g} % of the requests fail"
        found.append(
            _judge(ObjectiveKind.FAILURES, target, objectives.failure_percent / 100, failed, rules, min_requests)
        )
    return tuple(found)


def threshold(factor: float, budget: float) -> float:
    """Return the burn rate from which an objective burns.

    That is the factor, but at most the rate half-way between the budget and 100 % bad requests, so that it can be
    reached: a budget of 10 % cannot burn 14.4 times as fast.
    """
    return min(factor, (1 + budget) / 2 / budget)


def _judge(
    kind: ObjectiveKind, target: str, budget: float, bad: BadOf, rules: Sequence[BurnRule], min_requests: float
) -> ObjectiveState:
    windows = []
    for rule in rules:
        limit = threshold(rule.factor, budget)
        long_bad, long_of = bad(rule.long_seconds)
        short_bad, short_of = bad(rule.short_seconds)
        long_rate, short_rate = _rate(long_bad, long_of, budget), _rate(short_bad, short_of, budget)
        windows.append(
            WindowBurn(
                long_seconds=rule.long_seconds,
                short_seconds=rule.short_seconds,
                factor=limit,
                long_rate=long_rate,
                short_rate=short_rate,
                burning=short_of >= min_requests and long_rate >= limit and short_rate >= limit,
            )
        )
    return ObjectiveState(
        kind=kind, target=target, budget=budget, burning=any(one.burning for one in windows), windows=tuple(windows)
    )


def _rate(bad: float, of: float, budget: float) -> float:
    return bad / of / budget if of > 0 else 0.0
