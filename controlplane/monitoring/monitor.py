"""Scrapes every server's metrics and computes the metrics of each model.

Belongs to one event loop: a task for each server gets the page in a thread and adds it on the loop. No other code
writes, so that everything can be read without a lock.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from controlplane.domain.metrics import Point, ServerUse, TrafficStats
from controlplane.errors import ControlPlaneError
from controlplane.monitoring.series import COLUMNS, FAILED, INDEX, Series, bounds_of
from controlplane.monitoring.stats import latency, point, slow, traffic_stats
from controlplane.monitoring.windows import COARSE_SPAN_SECONDS, Row
from controlplane.settings import MonitoringSettings
from controlplane.triton.metrics_page import MetricsPage, MetricsParser
from controlplane.triton.metrics_scraper import MetricsScraper
from controlplane.triton.statistics import VersionKey

logger = logging.getLogger(__name__)

MAX_WINDOW_SECONDS = COARSE_SPAN_SECONDS
MAX_VERSIONS = 8
"""Maximum number of versions kept for one model on one server, removed ones included; the longest gone go first."""


@dataclass(frozen=True, slots=True)
class ScrapeTarget:
    """A server to scrape.

    Attributes:
        name: Its name.
        page: Its metrics; None if their address is not known.
        cpu_seconds: Returns the processor time of its models' processes; None for a server that runs elsewhere.
    """

    name: str
    page: MetricsScraper | None
    cpu_seconds: Callable[[], Mapping[VersionKey, float]] | None = None


@dataclass
class ScrapedServer:
    """The scraped metrics of one server.

    Attributes:
        source: The server.
        series: The series, by Triton name and version.
        began_at: Time of the first scrape (monotonic); None if there was none.
        looked_at: Time of the last scrape (monotonic).
        scraped_at: Time of the last scrape as a date.
        error: Why the last scrape failed; empty if it succeeded.
        use: The newest page, with the utilisation of the server.
        looks: How many scrapes succeeded (``ok``) and failed (``failed``).
        seconds: Total duration of the scrapes.
        page_bytes: Size of the newest page.
    """

    source: ScrapeTarget
    series: dict[VersionKey, Series] = field(default_factory=dict)
    began_at: float | None = None
    looked_at: float = 0.0
    scraped_at: datetime | None = None
    error: str = "not scraped yet"
    use: MetricsPage | None = None
    looks: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    page_bytes: int = 0

    def take(self, page: MetricsPage, cpu: Mapping[VersionKey, float] | None, at: float) -> None:
        """Add a page that was read at a time (monotonic)."""
        first = self.began_at is None
        if self.began_at is None:
            self.began_at = self.looked_at = at
        for key, sample in page.versions.items():
            series = self.series.get(key)
            bounds = bounds_of(sample)
            if series is None or series.bounds != bounds:
                # Requests before the first scrape are not counted; those of versions that appeared later are.
                series = self.series[key] = Series(at, sample if first else None, bounds)
            series.take(sample, at, cpu.get(key) if cpu is not None else None, since=self.looked_at)
        for key in self.series.keys() - page.versions.keys():
            self.series[key].gone()
            if at - self.series[key].seen_at > COARSE_SPAN_SECONDS:
                del self.series[key]
        self._bound()
        self.looked_at, self.error, self.use, self.page_bytes = at, "", page, page.bytes

    def _bound(self) -> None:
        versions = Counter(model for model, _ in self.series)
        for model, count in versions.items():
            if count > MAX_VERSIONS:
                keys = sorted((key for key in self.series if key[0] == model), key=lambda key: self.series[key].seen_at)
                for key in keys[: count - MAX_VERSIONS]:
                    del self.series[key]


class Monitor:
    """The windows of all servers.

    Args:
        sources: The servers.
        settings: Intervals.
        clock: Returns seconds on a monotonic clock.
    """

    def __init__(
        self,
        sources: Sequence[ScrapeTarget],
        settings: MonitoringSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._servers = {source.name: ScrapedServer(source) for source in sources}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._started = False

    async def start(self) -> None:
        """Start to scrape the servers."""
        self._started = True
        for watched in self._servers.values():
            self._begin(watched)

    async def stop(self) -> None:
        """Stop scraping; the recorded metrics stay available."""
        self._started = False
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks = {}

    def join(self, source: ScrapeTarget) -> None:
        """Scrape a further server from now on."""
        watched = self._servers[source.name] = ScrapedServer(source)
        if self._started:
            self._begin(watched)

    def leave(self, name: str) -> None:
        """Forget a server and its metrics."""
        self._servers.pop(name, None)
        if (task := self._tasks.pop(name, None)) is not None:
            task.cancel()

    def _begin(self, watched: ScrapedServer) -> None:
        if watched.source.page is not None:
            name = watched.source.name
            self._tasks[name] = asyncio.create_task(self._watch(watched), name=f"monitor {name}")

    def take(self, server: str, page: MetricsPage, cpu: Mapping[VersionKey, float] | None, at: float) -> None:
        """Add a server's page, as the task does."""
        self._servers[server].take(page, cpu, at)

    # Reads; no I/O

    def watched(self) -> tuple[ScrapedServer, ...]:
        """Return the scraped metrics of each server."""
        return tuple(self._servers.values())

    def use(self) -> tuple[ServerUse, ...]:
        """Return the utilisation of each server."""
        return tuple(
            ServerUse(
                server=name,
                scraped_at=watched.scraped_at,
                error=watched.error if watched.source.page is not None else "no metrics URL is configured",
                cpu_utilisation=watched.use.cpu_utilisation if watched.use and not watched.error else None,
                gpu_utilisation=dict(watched.use.gpu_utilisation) if watched.use and not watched.error else {},
            )
            for name, watched in self._servers.items()
        )

    def versions(self, model: str, window_seconds: float = MAX_WINDOW_SECONDS) -> tuple[tuple[str, int], ...]:
        """Return server and version of everything that was loaded under a Triton name within a window, in order."""
        since = self._clock() - window_seconds
        return tuple(
            sorted({(w.source.name, key[1]) for w, key, series in self._all(model) if series.seen_at >= since})
        )

    def traffic_stats(
        self, model: str, version: int | None = None, window_seconds: float = 300.0, server: str | None = None
    ) -> TrafficStats:
        """Return the metrics of a model in a window that ends now; zeros if there are none.

        Args:
            model: The name in Triton (a candidate has its own name).
            version: The version; None for all versions together.
            window_seconds: The window, `MAX_WINDOW_SECONDS` at most.
            server: The server; None for all servers together.
        """
        now = self._clock()
        chosen = list(self._all(model, version, server))
        total: Row = np.zeros(len(COLUMNS))
        for _, _, series in chosen:
            total += series.windows.total(window_seconds, now)[: len(COLUMNS)]
        bounds = {series.bounds for _, _, series in chosen if series.bounds}
        mixed: Row = total
        if len(bounds) == 1:  # buckets of different histograms cannot be added
            buckets = [s.windows.total(window_seconds, now)[len(COLUMNS) :] for _, _, s in chosen if s.bounds]
            mixed = np.concatenate([total, np.sum(buckets, axis=0)])
        return traffic_stats(
            total,
            model=model,
            version=version,
            server=server,
            window_seconds=window_seconds,
            covered_seconds=self._covered(window_seconds, now, server),
            latency=latency(mixed, next(iter(bounds)) if len(bounds) == 1 else ()),
            pending=sum(series.pending for _, _, series in chosen),
            cpu_known=any(watched.source.cpu_seconds is not None for watched, _, _ in chosen),
        )

    def points(self, model: str, window_seconds: float, count: int) -> tuple[Point, ...]:
        """Return a window divided into at most ``count`` equal parts, oldest first."""
        now = self._clock()
        totals: dict[float, Row] = {}
        for _, _, series in self._all(model):
            for ago, row in series.windows.points(window_seconds, now, count):
                total = totals.setdefault(ago, np.zeros(len(COLUMNS)))
                total += row[: len(COLUMNS)]
        ends = sorted(totals, reverse=True)
        seconds = ends[0] - ends[1] if len(ends) > 1 else window_seconds
        return tuple(point(totals[ago], ago_seconds=ago, seconds=seconds) for ago in ends)

    def slow(self, model: str, limit_seconds: float, window_seconds: float) -> tuple[float, float]:
        """Return how many requests of a model were slower than a limit, and how many have a known latency."""
        now = self._clock()
        counts = [
            slow(series.windows.read(window_seconds, now), limit_seconds, series.bounds)
            for _, _, series in self._all(model)
        ]
        return sum(one for one, _ in counts), sum(of for _, of in counts)

    def failed(self, model: str, window_seconds: float) -> tuple[float, float]:
        """Return how many requests of a model failed, and how many there were."""
        now = self._clock()
        total: Row = np.zeros(len(COLUMNS))
        for _, _, series in self._all(model):
            total += series.windows.total(window_seconds, now)[: len(COLUMNS)]
        bad = float(sum(total[INDEX[name]] for name in FAILED))
        return bad, bad + float(total[INDEX["requests"]])

    def _all(
        self, model: str, version: int | None = None, server: str | None = None
    ) -> Iterator[tuple[ScrapedServer, VersionKey, Series]]:
        for watched in self._servers.values():
            if server is None or watched.source.name == server:
                for key, series in watched.series.items():
                    if key[0] == model and version in (None, key[1]):
                        yield watched, key, series

    def _covered(self, window_seconds: float, now: float, server: str | None) -> float:
        began = [
            watched.began_at
            for name, watched in self._servers.items()
            if watched.began_at is not None and server in (None, name)
        ]
        return min(window_seconds, now - min(began)) if began else 0.0

    # The task

    async def _watch(self, watched: ScrapedServer) -> None:
        reader = MetricsParser()
        due = self._clock()
        while True:
            began = self._clock()
            try:
                page, cpu, at = await asyncio.to_thread(self._look, watched.source, reader)
                watched.take(page, cpu, at)
                watched.scraped_at = datetime.now(UTC)
                watched.looks["ok"] += 1
            except ControlPlaneError as error:
                self._missed(watched, str(error))
            except Exception:
                # Outermost handler of the loop: an unexpected page must not end the scraping.
                logger.exception("unexpected error while processing the metrics of %s", watched.source.name)
                self._missed(watched, "its metrics could not be processed; see the log")
            watched.seconds += self._clock() - began
            due = max(due + self._settings.interval_seconds, self._clock())
            await asyncio.sleep(due - self._clock())

    def _look(
        self, source: ScrapeTarget, reader: MetricsParser
    ) -> tuple[MetricsPage, Mapping[VersionKey, float] | None, float]:
        assert source.page is not None
        got = source.page.read(self._settings.timeout_seconds)
        at = self._clock() - (time.monotonic() - got.at)
        cpu = None
        with contextlib.suppress(OSError):
            cpu = source.cpu_seconds() if source.cpu_seconds is not None else None
        return reader.read(got.text), cpu, at

    def _missed(self, watched: ScrapedServer, error: str) -> None:
        watched.looks["failed"] += 1
        if watched.error != error:
            logger.warning("%s: %s", watched.source.name, error)
        watched.error = error
