"""The sequential tests keep their word: evidence against a version that is no worse is a supermartingale from 1."""

import math
from math import comb, exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.rollout.statistics import Labels, label_evidence, share_evidence, threshold

shares = st.floats(0.01, 0.99)


def expected(values: list[float], chance: float) -> float:
    """The expectation of ``values[k]`` where k of ``len(values) - 1`` coins of that chance come up."""
    n = len(values) - 1
    return sum(comb(n, k) * chance**k * (1 - chance) ** (n - k) * value for k, value in enumerate(values))


@given(weight=shares, events=st.integers(0, 40))
def test_the_evidence_of_labels_given_by_chance_is_one_in_the_mean(weight: float, events: int) -> None:
    values = [exp(label_evidence([Labels(weight, old=events - new, new=new)])) for new in range(events + 1)]
    assert expected(values, weight) == pytest.approx(1.0)


@given(weight=shares, better=st.floats(0.0, 1.0), events=st.integers(1, 40))
def test_better_version_has_less_evidence_against_it(weight: float, better: float, events: int) -> None:
    values = [exp(label_evidence([Labels(weight, old=events - new, new=new)])) for new in range(events + 1)]
    assert expected(values, weight * better) <= 1.0 + 1e-9


@given(before=st.tuples(shares, st.integers(0, 30), st.integers(0, 30)), weight=shares)
def test_each_further_event_keeps_the_mean_whatever_happened_before(
    before: tuple[float, int, int], weight: float
) -> None:
    """So the weight may change between steps, and even because of what was seen."""
    so_far = Labels(*before)
    evidence = exp(label_evidence([so_far]))
    after = [exp(label_evidence([so_far, Labels(weight, old=1 - new, new=new)])) for new in (0, 1)]
    assert expected(after, weight) == pytest.approx(evidence)


@given(share=st.floats(0.001, 0.9), trials=st.integers(0, 60), better=st.floats(0.0, 1.0))
def test_the_evidence_against_a_share_is_at_most_one_in_the_mean(share: float, trials: int, better: float) -> None:
    values = [exp(share_evidence(events, trials, share)) for events in range(trials + 1)]
    assert expected(values, share) == pytest.approx(1.0)
    assert expected(values, share * better) <= 1.0 + 1e-9


@given(weight=shares, old=st.integers(0, 10_000), new=st.integers(0, 10_000))
def test_more_events_of_the_new_version_are_more_evidence(weight: float, old: int, new: int) -> None:
    less, more = (label_evidence([Labels(weight, old, count)]) for count in (new, new + 1))
    assert more > less
    assert label_evidence([Labels(weight, old + 1, new)]) < less


def test_no_events_give_no_evidence() -> None:
    assert label_evidence([]) == 0.0
    assert label_evidence([Labels(0.5, 0, 0), Labels(0.0, 7, 0), Labels(1.0, 0, 7)]) == 0.0
    assert share_evidence(0, 0, 0.01) == 0.0


def test_one_difference_is_proof_if_none_is_allowed() -> None:
    assert share_evidence(0, 1000, 0.0) == 0.0
    assert share_evidence(1, 1000, 0.0) == math.inf


def test_three_failures_at_five_percent_are_enough_evidence() -> None:
    """The figure that the documentation gives."""
    needed = threshold(0.01, 3)
    assert label_evidence([Labels(0.05, old=0, new=2)]) < needed <= label_evidence([Labels(0.05, old=0, new=3)])
