"""GPUs that Triton does not use: whose failure a refusal is, and when such a GPU counts again.

Triton's words are those of a real one (`tests/triton/test_instance_groups.py`, `tests/gpu/test_within_a_server.py`).
"""

from datetime import timedelta
from pathlib import Path

import pytest

from controlplane.errors import LoadRefusedError
from controlplane.gpu.budgets import BudgetRules
from controlplane.lifecycle.actions import Load
from controlplane.lifecycle.executor import Outcome
from controlplane.lifecycle.observation import ReplicaObservation
from controlplane.lifecycle.replica import Replica
from controlplane.servers.readings import ServerReading
from controlplane.triton.embedded.processes import InstanceMemory
from tests.reconciler.served import HOST_READING, MIB, NOW, Served, gpu

WORDS = "instance group m_0 of model m has kind KIND_GPU but no GPUs are available"
SOME = (
    "instance group m_0 of model m specifies invalid or unsupported gpu id 0. GPUs with at least the minimum required "
    "CUDA compute compatibility of 6.000000 are: 1"
)
GPUS = (HOST_READING, gpu(0), gpu(1))


def served(work: Path) -> Served:
    return Served(work, GPUS, BudgetRules(dict.fromkeys(("host", "gpu:0", "gpu:1"), 8192 * MIB)))


def usable(server: Served) -> list[str]:
    return [one.name for one in server.scheduler.accounts.gpus]


def refuse(server: Served, unit: Replica, words: str = WORDS) -> str | None:
    load = Load(server.target(2), (2,), "test")
    return server.scheduler.gpus_refused(unit, Outcome(load, error=LoadRefusedError(words)), NOW)


def begin(server: Served, model: str) -> Replica:
    unit = Replica("s", model, ReplicaObservation())
    server.scheduler.began(unit, Load(server.target(2), (2,), "test"), NOW)
    return unit


def test_whoever_was_under_way_to_a_gpu_that_is_refused_has_not_failed_and_it_is_told_once(tmp_path: Path) -> None:
    server = served(tmp_path)
    one, other = begin(server, "m"), begin(server, "n")
    assert refuse(server, one) == f"Triton does not use gpu:0, gpu:1: {WORDS}"
    assert usable(server) == []
    assert refuse(server, other) == "", "it asked while they still counted; nothing new to tell"


def test_who_asks_for_a_gpu_that_is_known_to_be_refused_has_failed(tmp_path: Path) -> None:
    server = served(tmp_path)
    refuse(server, begin(server, "m"), SOME)
    assert usable(server) == ["gpu:1"]
    assert refuse(server, begin(server, "m"), SOME) is None
    assert refuse(server, begin(server, "m"), "its file is broken") is None
    assert refuse(server, begin(server, "m")) == f"Triton does not use gpu:1: {WORDS}"


@pytest.mark.parametrize("restarted", [False, True])
def test_after_a_restart_every_gpu_counts_again(restarted: bool, tmp_path: Path) -> None:
    server = served(tmp_path)
    refuse(server, begin(server, "m"))
    server.scheduler.lost(restarted=restarted)
    server.look(ServerReading(GPUS))
    assert usable(server) == ["gpu:0", "gpu:1"]


def test_elsewhere_a_model_that_vanished_may_mean_a_restart_between_two_looks(tmp_path: Path) -> None:
    server = served(tmp_path)
    server.do(Load(server.target(1), (1,), "test"))
    refuse(server, begin(server, "n"))
    server.scheduler.see("m", ReplicaObservation(loaded=frozenset({1})), server.step, NOW)
    assert usable(server) == []
    server.scheduler.see("m", ReplicaObservation(), server.step, NOW)
    assert usable(server) == ["gpu:0", "gpu:1"]


def test_elsewhere_a_refused_gpu_is_tried_again_after_an_hour_as_a_restart_may_go_unseen(tmp_path: Path) -> None:
    server = served(tmp_path)
    refuse(server, begin(server, "m"))
    server.scheduler.take(ServerReading(GPUS), [], server.step, NOW + timedelta(minutes=59))
    assert usable(server) == []
    server.scheduler.take(ServerReading(GPUS), [], server.step, NOW + timedelta(minutes=61))
    assert usable(server) == ["gpu:0", "gpu:1"]


def test_a_server_of_ours_says_when_it_restarts_so_time_alone_changes_nothing(tmp_path: Path) -> None:
    server = served(tmp_path)
    ours = ServerReading(GPUS, {("m", 1): InstanceMemory(1, 70 * MIB, 70 * MIB)}, 100 * MIB)
    server.look(ours)
    refuse(server, begin(server, "m"))
    server.scheduler.take(ours, [], server.step, NOW + timedelta(days=2))
    server.scheduler.see("m", ReplicaObservation(loaded=frozenset({1})), server.step, NOW)
    server.scheduler.see("m", ReplicaObservation(), server.step, NOW)
    assert usable(server) == []
