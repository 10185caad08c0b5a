"""Conditions: since when, over several servers, and what can be waited for."""

from datetime import UTC, datetime, timedelta

import pytest

from controlplane.domain.conditions import Awaited, Condition, ConditionStatus, joined, kept
from controlplane.errors import InvalidInputError

T0 = datetime(2026, 1, 1, tzinfo=UTC)
T1 = T0 + timedelta(minutes=1)


def condition(kind: str, status: str, since: datetime | None = None, message: str = "") -> Condition:
    return Condition(
        type=kind, status=ConditionStatus(status), reason="Because", message=message, last_transition_time=since
    )


def test_transition_time_is_kept_while_the_status_is_unchanged() -> None:
    before = kept((), [condition("Ready", "False"), condition("Loaded", "True")], T0)
    after = kept(before, [condition("Ready", "True"), condition("Loaded", "True", message="again")], T1)
    assert [one.last_transition_time for one in after] == [T1, T0]
    assert after[1].message == "again"


@pytest.mark.parametrize(
    ("kind", "statuses", "whole"),
    [
        ("Ready", ("True", "True"), "True"),
        ("Ready", ("True", "False"), "False"),
        ("Ready", ("True", "Unknown"), "Unknown"),
        ("Ready", ("Unknown", "False"), "False"),
        ("Degraded", ("False", "True"), "True"),
        ("Degraded", ("False", "False"), "False"),
        ("Progressing", ("Unknown", "False"), "Unknown"),
    ],
)
def test_combined_condition_is_the_worst_of_its_parts(kind: str, statuses: tuple[str, str], whole: str) -> None:
    parts = [(f"s{number}", [condition(kind, status, T0)]) for number, status in enumerate(statuses)]
    (found,) = joined(parts)
    assert found.status == whole


def test_combined_transition_time_follows_the_parts() -> None:
    fell = joined([("a", [condition("Ready", "False", T1)]), ("b", [condition("Ready", "False", T0)])])
    came = joined([("a", [condition("Ready", "True", T1)]), ("b", [condition("Ready", "True", T0)])])
    assert fell[0].last_transition_time == T0
    assert fell[0].message == "b"
    assert came[0].last_transition_time == T1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Ready", "Ready"),
        ("ready", "Ready"),
        ("condition=Ready", "Ready"),
        ("condition=Degraded=False", "Degraded=False"),
        ("healthy=unknown", "Healthy=Unknown"),
        ("unloaded", "Unloaded"),
    ],
)
def test_wait_conditions_are_parsed(text: str, shown: str) -> None:
    assert str(Awaited.parse(text)) == shown


@pytest.mark.parametrize(
    "text", ["", "Redy", "condition=Ready=Maybe", "unloaded=True", "condition=", "a=b=c=d", "=" * 99]
)
def test_unknown_wait_condition_error_lists_the_known_ones(text: str) -> None:
    with pytest.raises(InvalidInputError, match="Ready"):
        Awaited.parse(text)


def test_wait_considers_only_its_condition() -> None:
    conditions = (condition("Ready", "False"), condition("Degraded", "True"))
    assert Awaited.parse("Degraded").holds("Degraded", conditions)
    assert Awaited.parse("Ready=False").holds("Degraded", conditions)
    assert not Awaited.parse("Ready").holds("Degraded", conditions)
    assert Awaited.parse("unloaded").holds("Unloaded", ())
    assert not Awaited.parse("unloaded").holds("Failed", ())
