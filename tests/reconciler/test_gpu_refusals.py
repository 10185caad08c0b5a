"""GPUs that Triton rejects: which load has failed, and when such a GPU is used again.

The messages are those of a real Triton (`tests/triton/test_instance_groups.py`, `tests/gpu/test_within_a_server.py`).
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


def test_in_flight_load_on_rejected_gpu_is_retried_and_reported_once(tmp_path: Path) -> None:
    server = served(tmp_path)
    one, other = begin(server, "m"), begin(server, "n")
    assert refuse(server, one) == f"Triton does not use gpu:0, gpu:1: {WORDS}"
    assert usable(server) == []
    assert refuse(server, other) == "", "the load began before the rejection was known; there is no new event"


def test_load_on_known_rejected_gpu_fails(tmp_path: Path) -> None:
    server = served(tmp_path)
    refuse(server, begin(server, "m"), SOME)
    assert usable(server) == ["gpu:1"]
    assert refuse(server, begin(server, "m"), SOME) is None
    assert refuse(server, begin(server, "m"), "its file is broken") is None
    assert refuse(server, begin(server, "m")) == f"Triton does not use gpu:1: {WORDS}"


@pytest.mark.parametrize("restarted", [False, True])
def test_all_gpus_are_usable_after_a_restart(restarted: bool, tmp_path: Path) -> None:
    server = served(tmp_path)
    refuse(server, begin(server, "m"))
    server.scheduler.lost(restarted=restarted)
    server.look(ServerReading(GPUS))
    assert usable(server) == ["gpu:0", "gpu:1"]


def test_vanished_model_on_external_server_may_mean_a_restart(tmp_path: Path) -> None:
    server = served(tmp_path)
    server.do(Load(server.target(1), (1,), "test"))
    refuse(server, begin(server, "n"))
    server.scheduler.see("m", ReplicaObservation(loaded=frozenset({1})), server.step, NOW)
    assert usable(server) == []
    server.scheduler.see("m", ReplicaObservation(), server.step, NOW)
    assert usable(server) == ["gpu:0", "gpu:1"]


def test_rejected_gpu_of_external_server_is_retried_after_an_hour(tmp_path: Path) -> None:
    server = served(tmp_path)
    refuse(server, begin(server, "m"))
    server.scheduler.take(ServerReading(GPUS), [], server.step, NOW + timedelta(minutes=59))
    assert usable(server) == []
    server.scheduler.take(ServerReading(GPUS), [], server.step, NOW + timedelta(minutes=61))
    assert usable(server) == ["gpu:0", "gpu:1"]


def test_rejected_gpu_of_supervised_server_is_not_retried_by_time(tmp_path: Path) -> None:
    server = served(tmp_path)
    ours = ServerReading(GPUS, {("m", 1): InstanceMemory(1, 70 * MIB, 70 * MIB)}, 100 * MIB)
    server.look(ours)
    refuse(server, begin(server, "m"))
    server.scheduler.take(ours, [], server.step, NOW + timedelta(days=2))
    server.scheduler.see("m", ReplicaObservation(loaded=frozenset({1})), server.step, NOW)
    server.scheduler.see("m", ReplicaObservation(), server.step, NOW)
    assert usable(server) == []
