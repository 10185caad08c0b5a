"""What the gateway does, for who asks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from controlplane.errors import GatewayError, NotFoundError
from controlplane.gateway.gateway import Gateway
from controlplane.gateway.stats import GatewayStats, RequestLabels
from controlplane.gateway.views import GatewayAddress, GatewayView


@dataclass(frozen=True, slots=True)
class GatewaySnapshot:
    """All there is to tell of the gateway.

    Attributes:
        view: How it stands.
        stats: What the activator counted.
        fast: Requests on the direct way since HAProxy started.
        haproxy: HAProxy's statistics, a row for each of its parts.
    """

    view: GatewayView
    stats: GatewayStats
    fast: Mapping[RequestLabels, int]
    haproxy: Sequence[Mapping[str, str]]


def _codes(protocol: str, counters: Mapping[str, int]) -> dict[str, int]:
    """Return HAProxy's counts by code: classes of them, since that is what it counts."""
    if protocol == "grpc":
        failed = {"error": counters.get("gpc0", 0)}
    else:
        failed = {"4xx": counters.get("http_err_cnt", 0), "5xx": counters.get("http_fail_cnt", 0)}
    well = counters.get("http_req_cnt", 0) - sum(failed.values())
    return {"OK" if protocol == "grpc" else "2xx": max(well, 0), **failed}


class GatewayService:
    """Tells how the gateway stands."""

    def __init__(self, gateway: Gateway | None) -> None:
        self._gateway = gateway
        self.told: GatewaySnapshot | None = None

    async def look(self) -> None:
        """Ask HAProxy for its counters; `told` has them then."""
        gateway = self._gateway
        if gateway is None:
            return
        rows: list[dict[str, str]] = []
        fast = await _fast(gateway)
        with suppress(GatewayError):
            rows = await gateway.api.statistics()
        self.told = GatewaySnapshot(gateway.view(), gateway.stats, fast, rows)

    def address(self) -> GatewayAddress | None:
        """Return where it is; None where there is none."""
        return self._gateway.address() if self._gateway else None

    async def view(self) -> GatewayView:
        """Return how it stands, and what went which way.

        Raises:
            NotFoundError: It is turned off.
        """
        if self._gateway is None:
            raise NotFoundError(
                "this control plane has no gateway: the setting gateway.enabled is off, or HAProxy is not installed"
            )
        fast, activated = Counter[str](), Counter[str]()
        for found, counts in ((fast, await _fast(self._gateway)), (activated, self._gateway.stats.requests)):
            for kind, count in counts.items():
                found[kind.model] += count
        view = self._gateway.view()
        models = tuple(
            route.model_copy(
                update={"direct_requests": fast[route.model], "activator_requests": activated[route.model]}
            )
            for route in view.models
        )
        return view.model_copy(update={"models": models})


async def _fast(gateway: Gateway) -> Counter[RequestLabels]:
    """Ask HAProxy for the requests on the direct way."""
    fast: Counter[RequestLabels] = Counter()
    with suppress(GatewayError):  # it is being started: what it counted is gone with it
        for route, counters in (await gateway.api.counters()).items():
            for code, count in _codes(route.protocol, counters).items():
                fast[RequestLabels(route.model, "direct", route.version, route.protocol, code)] += count
    return fast
