"""Where a model can be asked: on the servers where the version that answers is proved. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controlplane.reconciler.actions import Unload
from controlplane.reconciler.types import Mark
from controlplane.reconciler.units import Unit
from controlplane.reconciler.wishes import Wish


@dataclass(frozen=True, slots=True)
class Route:
    """Where a model can be asked.

    Attributes:
        servers: Names of the servers on which the version that answers is proved, sorted.
        version: Which version answers there; None while the servers differ.
    """

    servers: tuple[str, ...]
    version: int | None = None


def answers(unit: Unit) -> bool:
    """Whether a model's own name is answered here by a version that is proved, and that is not about to go."""
    if unit.facts is None or unit.stale_since is not None:
        return False
    if unit.doing is not None and isinstance(unit.doing.action, Unload) and not unit.doing.action.candidate:
        return False
    answering = max(unit.facts.loaded, default=None)
    return answering is not None and unit.record.marks.get(answering) is Mark.PASSED


def routes(wishes: Mapping[str, Wish], units: Iterable[Unit]) -> dict[str, Route]:
    """Return where every deployed model can be asked; what can be asked nowhere is left out.

    Args:
        wishes: What is wanted, by model.
        units: The models on the servers that answer.
    """
    found: dict[str, dict[str, int]] = {}
    for unit in units:
        if unit.model in wishes and answers(unit):
            assert unit.facts is not None
            found.setdefault(unit.model, {})[unit.server] = max(unit.facts.loaded)
    return {
        model: Route(
            tuple(sorted(servers)),
            next(iter(servers.values())) if len(set(servers.values())) == 1 else None,
        )
        for model, servers in found.items()
    }
