"""What the front door does, for who asks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from controlplane.errors import GatewayError, NotFoundError
from controlplane.gateway.front_door import FrontDoor
from controlplane.gateway.tally import Kind, Tally
from controlplane.gateway.view import GatewayAddress, GatewayView


@dataclass(frozen=True, slots=True)
class Told:
    """All there is to tell of the front door.

    Attributes:
        view: How it stands.
        tally: What the activator counted.
        fast: Requests on the fast way since HAProxy started.
        haproxy: HAProxy's statistics, a row for each of its parts.
    """

    view: GatewayView
    tally: Tally
    fast: Mapping[Kind, int]
    haproxy: Sequence[Mapping[str, str]]


def _codes(protocol: str, counters: Mapping[str, int]) -> dict[str, int]:
    """Return HAProxy's counts by code: classes of them, since that is what it counts."""
    if protocol == "grpc":
        failed = {"error": counters.get("gpc0", 0)}
    else:
        failed = {"4xx": counters.get("http_err_cnt", 0), "5xx": counters.get("http_fail_cnt", 0)}
    well = counters.get("http_req_cnt", 0) - sum(failed.values())
    return {"OK" if protocol == "grpc" else "2xx": max(well, 0), **failed}


class Gateway:
    """Tells how the front door stands."""

    def __init__(self, front_door: FrontDoor | None) -> None:
        self._front_door = front_door
        self.told: Told | None = None

    async def look(self) -> None:
        """Ask HAProxy for its counters; `told` has them then."""
        door = self._front_door
        if door is None:
            return
        rows: list[dict[str, str]] = []
        fast = await _fast(door)
        with suppress(GatewayError):
            rows = await door.api.statistics()
        self.told = Told(door.view(), door.tally, fast, rows)

    def address(self) -> GatewayAddress | None:
        """Return where it is; None where there is none."""
        return self._front_door.address() if self._front_door else None

    async def view(self) -> GatewayView:
        """Return how it stands, and what went which way.

        Raises:
            NotFoundError: It is turned off.
        """
        if self._front_door is None:
            raise NotFoundError(
                "this control plane has no front door: the setting gateway.enabled is off, or HAProxy is not installed"
            )
        fast, activated = Counter[str](), Counter[str]()
        for found, counts in ((fast, await _fast(self._front_door)), (activated, self._front_door.tally.requests)):
            for kind, count in counts.items():
                found[kind.model] += count
        view = self._front_door.view()
        models = tuple(
            road.model_copy(update={"fast_requests": fast[road.model], "activated_requests": activated[road.model]})
            for road in view.models
        )
        return view.model_copy(update={"models": models})


async def _fast(door: FrontDoor) -> Counter[Kind]:
    """Ask HAProxy for the requests on the fast way."""
    fast: Counter[Kind] = Counter()
    with suppress(GatewayError):  # it is being started: what it counted is gone with it
        for road, counters in (await door.api.counters()).items():
            for code, count in _codes(road.protocol, counters).items():
                fast[Kind(road.model, "fast", road.version, road.protocol, code)] += count
    return fast
