"""Retained memory of an unloaded version, computed from readings: when it is known and when not."""

from datetime import UTC, datetime

from controlplane.gpu.base import HOST, DeviceKind, DeviceReading
from controlplane.gpu.budgets import BudgetRules
from controlplane.memory.ledger_sync import LedgerSync
from controlplane.memory.policy.types import Footprint, Slot
from controlplane.memory.retained_memory import RetainedMemory
from controlplane.servers.readings import ServerReading
from controlplane.triton.embedded.processes import InstanceMemory

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
GIB = 1 << 30


class Server:
    """A server as its readings show it: its own process and 100 bytes for each loaded model."""

    def __init__(self, own: int = 1000) -> None:
        self.own = own
        self.accounts = LedgerSync(BudgetRules({HOST: GIB}), told=True)
        self.retained_memory = RetainedMemory(self.accounts)
        self.loaded: set[str] = set()
        self.look()

    def look(self) -> dict[tuple[str, int], int]:
        host = DeviceReading(HOST, DeviceKind.HOST, 4 * GIB, GIB)
        instances = {(model, 1): InstanceMemory(1, 100, 120) for model in self.loaded}
        self.accounts.ingest(ServerReading((host,), instances, self.own), 1, NOW)
        return self.retained_memory.found()

    def begin_load(self, model: str) -> None:
        self.retained_memory.load_began(model, first=True)
        ledger = self.accounts.ledger.reserve(Slot(model, 1), {HOST: Footprint(150)}, NOW)
        self.accounts.ledger = ledger.loading(Slot(model, 1), NOW)

    def end_load(self, model: str) -> None:
        self.loaded.add(model)
        self.accounts.ledger = self.accounts.ledger.resident(Slot(model, 1), {HOST: 100}, NOW)
        self.look()

    def load(self, model: str) -> None:
        self.begin_load(model)
        self.end_load(model)

    def begin_unload(self, model: str) -> None:
        self.retained_memory.unload_began(model, own=True)
        self.accounts.ledger = self.accounts.ledger.unloading(Slot(model, 1), NOW)

    def end_unload(self, model: str) -> dict[tuple[str, int], int]:
        self.loaded.remove(model)
        self.accounts.mark_unloading(Slot(model, 1), 0, NOW)
        return self.look()


def test_retained_memory_is_measured_from_load_to_unload() -> None:
    server = Server()
    server.load("a")
    server.own += 400  # while it serves
    server.look()
    server.begin_unload("a")
    server.own -= 70  # some of it is freed
    assert server.end_unload("a") == {("a", 1): 330}
    assert server.look() == {}, "once"


def test_retained_memory_is_never_negative() -> None:
    server = Server(own=5000)
    server.load("a")
    server.own = 4000
    server.begin_unload("a")
    assert server.end_unload("a") == {("a", 1): 0}


def test_growth_beside_other_loads_is_not_attributed_except_over_unload() -> None:
    server = Server()
    server.load("a")
    server.load("b")
    server.own += 400
    server.retained_memory.used(["b"])
    server.look()
    server.begin_unload("a")
    server.own += 30
    assert server.end_unload("a") == {("a", 1): 30}


def test_own_use_does_not_prevent_the_measurement() -> None:
    server = Server()
    server.load("a")
    server.own += 400
    server.retained_memory.used(["a"])
    server.look()
    server.begin_unload("a")
    assert server.end_unload("a") == {("a", 1): 400}


def test_concurrent_loads_make_retained_memory_unknown() -> None:
    server = Server()
    server.load("a")
    server.begin_unload("a")
    server.begin_load("b")
    assert server.end_unload("a") == {}
    server.end_load("b")
    server.load("c")
    server.begin_unload("b")
    server.begin_unload("c")
    assert server.end_unload("b") == {}
    assert server.end_unload("c") == {}


def test_restart_clears_the_measurement() -> None:
    server = Server()
    server.load("a")
    server.accounts.restarted()
    server.retained_memory.restarted()
    server.own, server.loaded = 500, set()
    server.look()
    server.load("a")
    server.own += 25
    server.begin_unload("a")
    assert server.end_unload("a") == {("a", 1): 25}
