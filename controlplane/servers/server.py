"""A Triton server as the reconciler works with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.gpu.base import DeviceSource
from controlplane.gpu.budgets import BudgetRules
from controlplane.triton.client import TritonClient
from controlplane.triton.embedded.server import EmbeddedTriton
from controlplane.triton.metrics_scraper import MetricsScraper
from controlplane.triton.repository import ModelRepository


@dataclass(frozen=True, slots=True)
class ManagedServer:
    """One server with what belongs to it.

    Attributes:
        name: Its name.
        client: Its API.
        repository: Its model repository, as this process sees it.
        embedded: The supervisor, where this process started the server.
        http_url: URL of its HTTP service, for display.
        page: Its metrics; None where their address is not known.
        devices: What tells of its devices' memory; None: nobody does.
        budgets: How much of each of them models may use.
        zone: Its failure domain.
        labels: What node selectors are matched with.
        private: Whether only this process reaches it: no other instance drives it or sends requests to it.
        identity: What tells it from servers of the same name elsewhere; empty: its name does.
    """

    name: str
    client: TritonClient
    repository: ModelRepository
    embedded: EmbeddedTriton | None = None
    http_url: str = ""
    page: MetricsScraper | None = None
    devices: DeviceSource | None = None
    budgets: BudgetRules = field(default_factory=BudgetRules)
    zone: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    private: bool = False
    identity: str = ""

    @property
    def id(self) -> str:
        """Its name among the servers of all instances."""
        return self.identity or self.name

    @property
    def metrics_url(self) -> str:
        """URL of its metrics, for display."""
        return self.page.url if self.page is not None else ""
