"""How many of the requests are measured while a rollout is under way, and what becomes of those. Pure.

Measuring costs: a request that is measured goes through the control plane. So of a busy model a part of them is drawn
by chance, with nothing else to it, and the rest goes straight to the old version. A canary's sample is the new
version's share ``w`` and a control group of the old version, ``c`` times as large: ``s = min(1, (1 + c) w)`` of the
requests. Within the sample a request is given to the new version with the probability ``w / s``, which makes ``w`` of
all of them. To the test it is the same as if the sample were all there is: its events come from a version that is no
worse with a probability of at most ``w / s`` (`domain.sequential`).
"""

import math

from controlplane.domain.deployment import Rollout
from controlplane.domain.rollout import decision as rules
from controlplane.domain.rollout.strategy import StrategyKind

PARTS = 1_000_000
"""Shares are told as parts of a million. So many are all requests."""


def sample(rollout: Rollout) -> int:
    """Return how many of a million requests are to be measured in the present step; 0 before it began."""
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
    """Return the probability, 0 to 1, with which a request that was drawn is the new version's to answer.

    Args:
        rollout: The rollout.
        drawn: From a sample of how many of a million requests it is. For a moment that may be the step's before.
    """
    return min(rules.weight(rollout) / (drawn / PARTS), 1.0)


def _parts(share: float) -> int:
    # Rounded up, so that the sample is large enough; but not for the last bit of a floating-point number.
    return min(max(math.ceil(share * PARTS - 1e-6), 1), PARTS)
