"""Share of the requests that are measured during a rollout, and how those are split. Pure.

Measuring has a cost: a measured request goes through the control plane. So for a busy model a purely random part of the
requests is sampled, and the rest goes straight to the old version. A canary's sample is the new version's share ``w``
and a control group of the old version, ``c`` times as large: ``s = min(1, (1 + c) w)`` of the requests. Within the
sample a request goes to the new version with probability ``w / s``, which makes ``w`` of all requests. To the test the
sample looks like all of the traffic: its events come from a version that is no worse with a probability of at most
``w / s`` (`domain.rollout.statistics`).
"""

import math

from controlplane.domain.deployment import Rollout
from controlplane.domain.rollout import decision as rules
from controlplane.domain.rollout.strategy import StrategyKind

PARTS = 1_000_000
"""Shares are given as parts of a million; this value means all requests."""


def sample(rollout: Rollout) -> int:
    """Return how many of a million requests are to be measured in the current step; 0 before it begins."""
    if rollout.step_since is None:
        return 0
    strategy = rollout.strategy
    match strategy.kind:
        case StrategyKind.CANARY:
            return _parts((1 + strategy.control_ratio) * rules.weight(rollout))
        case StrategyKind.SHADOW:
            return _parts(strategy.shadow_share)
        case _:
            return 0


def weight(rollout: Rollout, drawn: int) -> float:
    """Return the probability, 0 to 1, that a sampled request goes to the new version.

    Args:
        rollout: The rollout.
        drawn: The sample's size in requests of a million. It may briefly belong to the previous step.
    """
    return min(rules.weight(rollout) / (drawn / PARTS), 1.0)


def _parts(share: float) -> int:
    # Rounded up, so that the sample is large enough, but not for the last bit of a floating-point number.
    return min(max(math.ceil(share * PARTS - 1e-6), 1), PARTS)
