"""Sequential tests of whether the new version is worse, valid when checked after every request. Pure.

The test looks at labels, not at rates. Every request goes to the new version with a known probability ``w``, purely at
random. If the new version is no worse, an *event* (a failure, an answer slower than a threshold) comes from it with a
probability of at most ``w``, whatever the rate of events is and however that rate changes with load or time of day. So
each event is a coin whose bias is known, and the evidence that the bias is larger is a likelihood ratio, multiplied
over the events. That product is a non-negative supermartingale that starts at 1 as long as the new version is no worse,
and by Ville's inequality the chance that it *ever* reaches ``1 / error`` is at most ``error``: the test can be checked
at any time and stopped at any time.

- The ratio is Wald's (A. Wald, Sequential tests of statistical hypotheses, Ann. Math. Statist. 16, 1945), mixed over
  several alternatives because the size of the regression is unknown: the mixture SPRT of H. Robbins (Ann. Math.
  Statist. 41, 1970) and, for continuously monitored A/B tests, R. Johari, P. Koomen, L. Pekelis, D. Walsh (Always valid
  inference, Operations Research 70(3), 2022). A mixture of martingales is a martingale.
- Vaccine surveillance conditions on the events and tests their labels in the same way: M. Kulldorff et al., A maximized
  sequential probability ratio test for drug and vaccine safety surveillance, Sequential Analysis 30(1), 2011.
- Ville's inequality and its use: S. Howard, A. Ramdas, J. McAuliffe, J. Sekhon, Time-uniform, nonparametric,
  nonasymptotic confidence sequences, Ann. Statist. 49(2), 2021.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

RATIOS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
"""The mixed alternatives, with equal weights: the new version has this many times the events of the old one."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Events that happened while the new version got one share of the requests.

    Attributes:
        weight: The probability that a request goes to the new version, between 0 and 1.
        old: Events of the old version.
        new: Events of the new version.
    """

    weight: float
    old: int
    new: int


def label_evidence(labels: Iterable[Labels]) -> float:
    """Return the logarithm of the evidence that events come from the new version more often than its share.

    Under "no worse" the chance that this ever exceeds ``log(1 / error)`` is at most ``error``.
    """
    counted = [one for one in labels if 0 < one.weight < 1 and one.old + one.new > 0]
    return _mean_exp([sum(_label_ratio(one, ratio) for one in counted) for ratio in RATIOS])


def share_evidence(events: int, trials: int, share: float) -> float:
    """Return the logarithm of the evidence that events are more frequent than ``share`` of the trials.

    Args:
        events: Trials with the event.
        trials: All trials.
        share: The largest acceptable share, at least 0 and below 1.
    """
    if share <= 0:
        return math.inf if events else 0.0
    if trials == 0:
        return 0.0
    odds = share / (1 - share)
    return _mean_exp([_binomial_ratio(events, trials - events, share, ratio * odds) for ratio in RATIOS])


def threshold(error: float, tests: int) -> float:
    """Return the log evidence that one test needs if ``tests`` tests share one ``error`` (Bonferroni)."""
    return math.log(tests / error)


def _label_ratio(labels: Labels, ratio: float) -> float:
    odds = labels.weight / (1 - labels.weight)
    return _binomial_ratio(labels.new, labels.old, labels.weight, ratio * odds)


def _binomial_ratio(hits: int, misses: int, null: float, odds: float) -> float:
    """Return the log likelihood ratio of a coin with ``odds`` against one with the probability ``null``."""
    chance = odds / (1 + odds)
    return hits * math.log(chance / null) + misses * math.log((1 - chance) / (1 - null))


def _mean_exp(logs: list[float]) -> float:
    largest = max(logs)
    return largest + math.log(sum(math.exp(one - largest) for one in logs) / len(logs))
