"""What the front door does, for who asks."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from controlplane.errors import GatewayError, NotFoundError
from controlplane.gateway.front_door import FrontDoor
from controlplane.gateway.tally import Tally
from controlplane.gateway.view import GatewayAddress, GatewayView


@dataclass(frozen=True, slots=True)
class Told:
    """All there is to tell of the front door.

    Attributes:
        view: How it stands.
        tally: What the activator counted.
        fast: Requests on the fast way since HAProxy started, and how many of them failed, by model.
        haproxy: HAProxy's statistics, a row for each of its parts.
    """

    view: GatewayView
    tally: Tally
    fast: Mapping[str, tuple[int, int]]
    haproxy: Sequence[Mapping[str, str]]


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
        fast: dict[str, tuple[int, int]] = {}
        rows: list[dict[str, str]] = []
        with suppress(GatewayError):  # it is being started: what it counted is gone with it
            for key, counters in (await door.api.counters()).items():
                model = key.partition("/")[2]
                total, failed = fast.get(model, (0, 0))
                failures = sum(counters.get(name, 0) for name in ("http_err_cnt", "http_fail_cnt", "gpc0"))
                fast[model] = (total + counters.get("http_req_cnt", 0), failed + failures)
            rows = await door.api.statistics()
        self.told = Told(door.view(), door.tally, fast, rows)

    def address(self) -> GatewayAddress | None:
        """Return where it is; None where there is none."""
        return self._front_door.address() if self._front_door else None

    def view(self) -> GatewayView:
        """Return how it stands.

        Raises:
            NotFoundError: It is turned off.
        """
        if self._front_door is None:
            raise NotFoundError(
                "this control plane has no front door: the setting gateway.enabled is off, or HAProxy is not installed"
            )
        return self._front_door.view()
