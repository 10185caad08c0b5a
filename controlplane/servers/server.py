"""A Triton server as the reconciler uses it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.gpu.base import DeviceSource
from controlplane.gpu.budgets import BudgetRules
from controlplane.servers.repository import ServerRepository
from controlplane.triton.client import TritonClient
from controlplane.triton.embedded.server import EmbeddedTriton
from controlplane.triton.metrics_scraper import MetricsScraper


@dataclass(frozen=True, slots=True)
class ManagedServer:
    """One server with its clients, repository and settings.

    Attributes:
        name: The server's name.
        client: Client of its API.
        repository: Its model repository, in this process or through the agent beside the server.
        embedded: The supervisor, if this process started the server.
        http_url: URL of its HTTP service, for display.
        page: Scraper of its metrics; None if their address is not known.
        devices: Source of device memory readings; None if there is none.
        budgets: The part of each device that models may use.
        zone: Its failure domain.
        labels: Labels that node selectors are matched with.
        private: Whether only this process can reach the server: no other instance drives it or sends requests to it.
        identity: Identifier that distinguishes it from servers of the same name on other instances; empty if the name
            is unique.
        image: Release of NVIDIA's image that it runs, ``other`` if it runs another Triton; empty if not declared.
    """

    name: str
    client: TritonClient
    repository: ServerRepository
    embedded: EmbeddedTriton | None = None
    http_url: str = ""
    page: MetricsScraper | None = None
    devices: DeviceSource | None = None
    budgets: BudgetRules = field(default_factory=BudgetRules)
    zone: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    private: bool = False
    identity: str = ""
    image: str = ""

    @property
    def id(self) -> str:
        """Unique name among the servers of all instances."""
        return self.identity or self.name

    @property
    def metrics_url(self) -> str:
        """URL of its metrics, for display."""
        return self.page.url if self.page is not None else ""
