"""What a version leaves in its server when it is unloaded. Mutable; the steward's own.

A server's own processes have something beyond the ledger (`ProcessMemory.quiet`). What that has grown by from before a
load to after the unload, the version left behind, if nothing else was loaded, unloaded or asked in the meantime. Where
that is not so, what has grown over the unload alone still counts: memory that was the version's and was not given back.
Where other models moved even then, nobody can tell.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from controlplane.memory.ledger_sync import LedgerSync


@dataclass
class _LoadWindow:
    """A version that is loaded.

    Attributes:
        before: What there was beyond the ledger, by device, when its load began.
        alone: Whether nothing else happened on the server since.
    """

    before: dict[str, int]
    alone: bool = True


class RetainedMemory:
    """Follows one server's loads and unloads.

    Args:
        accounts: Its ledger and figures.
    """

    def __init__(self, accounts: LedgerSync) -> None:
        self._accounts = accounts
        self._stays: dict[str, _LoadWindow] = {}
        self._leaving: dict[str, tuple[int, dict[str, int]]] = {}

    def load_began(self, model: str, *, first: bool) -> None:
        """A load begins.

        Args:
            model: The model.
            first: Whether it is the only version of it, under its own name.
        """
        self._moved(model)
        if first:
            self._stays[model] = _LoadWindow(dict(self._accounts.quiet()))
        else:
            self._stays.pop(model, None)

    def unload_began(self, model: str, *, own: bool) -> None:
        """An unload begins, of all that a model has under its own name, or of its candidate."""
        crossed = bool(self._leaving)
        self._moved(model)
        stay = self._stays.pop(model, None)
        versions = {holding.slot.version for holding in self._accounts.ledger.of_model(model)}
        if own and len(versions) == 1 and not crossed:
            before = stay.before if stay is not None and stay.alone else dict(self._accounts.quiet())
            self._leaving[model] = (versions.pop(), before)

    def used(self, models: Iterable[str]) -> None:
        """These were asked: what the server grows by may be theirs."""
        asked = set(models)
        for model, stay in self._stays.items():
            if asked - {model}:
                stay.alone = False

    def restarted(self) -> None:
        """The server started anew."""
        self._stays.clear()
        self._leaving.clear()

    def found(self) -> dict[tuple[str, int], int]:
        """After a reading was taken in: bytes that stayed, by model and version, of those whose memory is free now."""
        found: dict[tuple[str, int], int] = {}
        for model, (version, before) in list(self._leaving.items()):
            if self._accounts.ledger.of_model(model):
                continue
            del self._leaving[model]
            now, fresh = self._accounts.quiet(), self._accounts.quiet_now()
            grown = [now[device] - start for device, start in before.items() if device in fresh]
            if grown:
                found[model, version] = max(*grown, 0)
        return found

    def _moved(self, model: str) -> None:
        self._leaving.clear()
        for other, stay in self._stays.items():
            if other != model:
                stay.alone = False
