"""Status messages during an action: they name the action, not its reason."""

from datetime import UTC, datetime

import pytest

from controlplane.domain.states import Phase
from controlplane.lifecycle.actions import Action, CleanUp, Load, Prove, Stage, Unload, Wait
from controlplane.lifecycle.history import ReplicaHistory
from controlplane.lifecycle.state import DesiredReplica, ObservedReplica, Target
from controlplane.lifecycle.status import Doing, View, server_status

WHY = "a reason for the log"
ONE, TWO = Target(1, "a"), Target(2, "a")


def message(action: Action, *, loaded: frozenset[int] = frozenset(), phase: Phase | None = None) -> str:
    view = View(
        "local",
        DesiredReplica("net", 1, datetime.now(UTC), True, targets=(TWO,)),
        ObservedReplica(loaded=loaded, digest="a" if loaded else None),
        ReplicaHistory(),
        doing=Doing(action, phase),
    )
    return server_status(view, datetime.now(UTC)).message


@pytest.mark.parametrize(
    ("action", "loaded", "said"),
    [
        (Stage(TWO, False, WHY), (), "fetching version 2"),
        (Stage(TWO, True, WHY), (1,), "fetching version 2 as a candidate to prove it"),
        (Load(TWO, (2,), WHY), (), "loading version 2"),
        (Load(TWO, (2,), WHY, candidate=True), (1,), "loading version 2 as a candidate to prove it"),
        (Load(TWO, (1, 2), WHY), (1,), "loading version 2 beside version 1"),
        (Load(TWO, (2,), WHY, reload=True), (2,), "loading version 2 again"),
        (Load(ONE, (1,), WHY), (1, 3), "dropping version 3; version 1 answers"),
        (Prove(TWO, True, WHY), (1,), "proving version 2 as a candidate"),
        (Prove(TWO, False, WHY), (1, 2), "proving version 2"),
        (Unload(True, WHY), (1,), "unloading the candidate"),
        (Unload(False, WHY), (1,), "unloading the loaded version"),
        (CleanUp(WHY), (1,), "removing unused folders"),
        (Wait("Triton is unloading an earlier version"), (), "waiting: Triton is unloading an earlier version"),
    ],
)
def test_status_message_names_the_running_action(action: Action, loaded: tuple[int, ...], said: str) -> None:
    assert message(action, loaded=frozenset(loaded)) == said


def test_staging_message_says_when_the_files_are_complete() -> None:
    assert message(Stage(TWO, False, WHY), phase=Phase.STAGING) == "staging version 2"
