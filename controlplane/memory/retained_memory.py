"""Memory that a version leaves behind in its server when it is unloaded. Mutable; owned by the scheduler.

A server's own processes use memory beyond the ledger (`ProcessMemory.quiet`). The growth of that memory from before a
load to after the unload is what the version left behind, if nothing else was loaded, unloaded or requested meanwhile.
Otherwise only the growth during the unload counts: memory of the version that was not freed. If other models were
loaded or unloaded even then, the growth cannot be attributed.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from controlplane.memory.ledger_sync import LedgerSync


@dataclass
class _LoadWindow:
    """A loaded version.

    Attributes:
        before: Memory beyond the ledger, by device, when its load began.
        alone: Whether nothing else happened on the server since.
    """

    before: dict[str, int]
    alone: bool = True


class RetainedMemory:
    """Follows one server's loads and unloads.

    Args:
        accounts: Its ledger and readings.
    """

    def __init__(self, accounts: LedgerSync) -> None:
        self._accounts = accounts
        self._stays: dict[str, _LoadWindow] = {}
        self._leaving: dict[str, tuple[int, dict[str, int]]] = {}

    def load_began(self, model: str, *, first: bool) -> None:
        """Record the start of a load.

        Args:
            model: The model.
            first: Whether it is the only version of the model, under its own name.
        """
        self._moved(model)
        if first:
            self._stays[model] = _LoadWindow(dict(self._accounts.idle_excess()))
        else:
            self._stays.pop(model, None)

    def unload_began(self, model: str, *, own: bool) -> None:
        """Record the start of an unload, of everything under the model's own name or of its candidate."""
        crossed = bool(self._leaving)
        self._moved(model)
        stay = self._stays.pop(model, None)
        versions = {holding.slot.version for holding in self._accounts.ledger.of_model(model)}
        if own and len(versions) == 1 and not crossed:
            before = stay.before if stay is not None and stay.alone else dict(self._accounts.idle_excess())
            self._leaving[model] = (versions.pop(), before)

    def used(self, models: Iterable[str]) -> None:
        """Record that these models got requests: growth of the server's memory may come from them."""
        asked = set(models)
        for model, stay in self._stays.items():
            if asked - {model}:
                stay.alone = False

    def restarted(self) -> None:
        """Forget everything after a restart of the server."""
        self._stays.clear()
        self._leaving.clear()

    def found(self) -> dict[tuple[str, int], int]:
        """Return the bytes left behind, by model and version, of versions whose memory is now free."""
        found: dict[tuple[str, int], int] = {}
        for model, (version, before) in list(self._leaving.items()):
            if self._accounts.ledger.of_model(model):
                continue
            del self._leaving[model]
            now, fresh = self._accounts.idle_excess(), self._accounts.quiet_now()
            grown = [now[device] - start for device, start in before.items() if device in fresh]
            if grown:
                found[model, version] = max(*grown, 0)
        return found

    def _moved(self, model: str) -> None:
        self._leaving.clear()
        for other, stay in self._stays.items():
            if other != model:
                stay.alone = False
