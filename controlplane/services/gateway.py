"""The state and the statistics of the gateway, for the API."""

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
    """State and statistics of the gateway.

    Attributes:
        view: The gateway's state.
        stats: The activator's counters.
        fast: Requests that went directly through HAProxy since it started.
        haproxy: HAProxy's statistics, one row for each of its parts.
    """

    view: GatewayView
    stats: GatewayStats
    fast: Mapping[RequestLabels, int]
    haproxy: Sequence[Mapping[str, str]]


def _codes(protocol: str, counters: Mapping[str, int]) -> dict[str, int]:
    """Return HAProxy's counts by status code class, the only granularity that HAProxy counts."""
    if protocol == "grpc":
        failed = {"error": counters.get("gpc0", 0)}
    else:
        failed = {"4xx": counters.get("http_err_cnt", 0), "5xx": counters.get("http_fail_cnt", 0)}
    well = counters.get("http_req_cnt", 0) - sum(failed.values())
    return {"OK" if protocol == "grpc" else "2xx": max(well, 0), **failed}


class GatewayService:
    """Reports the state of the gateway."""

    def __init__(self, gateway: Gateway | None) -> None:
        self._gateway = gateway
        self.snapshot: GatewaySnapshot | None = None

    async def look(self) -> None:
        """Read HAProxy's counters into `snapshot`."""
        gateway = self._gateway
        if gateway is None:
            return
        rows: list[dict[str, str]] = []
        fast = await _fast(gateway)
        with suppress(GatewayError):
            rows = await gateway.api.statistics()
        self.snapshot = GatewaySnapshot(gateway.view(), gateway.stats, fast, rows)

    def address(self) -> GatewayAddress | None:
        """Return the gateway's address; None if there is no gateway."""
        return self._gateway.address() if self._gateway else None

    async def view(self) -> GatewayView:
        """Return the gateway's state, and how many requests took which path.

        Raises:
            NotFoundError: The gateway is disabled.
        """
        if self._gateway is None:
            raise NotFoundError(
                "this control plane has no gateway: gateway.enabled is off, or HAProxy is not installed"
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
    """Read the number of direct requests from HAProxy."""
    fast: Counter[RequestLabels] = Counter()
    with suppress(GatewayError):  # it is starting: its earlier counts are lost
        for route, counters in (await gateway.api.counters()).items():
            for code, count in _codes(route.protocol, counters).items():
                fast[RequestLabels(route.model, "direct", route.version, route.protocol, code)] += count
    return fast
