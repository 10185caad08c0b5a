"""How often each loaded version was asked, from Triton's own counters; so clients on its own ports count too.

Counts and times come over gRPC (``ModelStatistics``); the requests that wait or run at a moment are in the metrics page
alone. A version's counters start again at zero with every load.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from controlplane.errors import TritonError
from controlplane.triton.metrics_scraper import MetricsScraper

logger = logging.getLogger(__name__)

_PENDING = re.compile(r"^nv_inference_pending_request_count\{([^}]*)\}\s+([0-9.e+]+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

VersionKey = tuple[str, int]
"""Triton name and version number."""


@dataclass(frozen=True, slots=True)
class VersionCounters:
    """One version's counters.

    Attributes:
        requests: Requests since it was loaded, failed ones included.
        last_at: When the newest was answered (the server's clock); None before the first.
        queue_seconds: Seconds that its requests waited in Triton's queue, summed.
        failures: Those of the requests that failed.
    """

    requests: int
    last_at: datetime | None
    queue_seconds: float
    failures: int = 0


def parse_statistics(response: Any) -> dict[VersionKey, VersionCounters]:
    """Read Triton's answer to ``ModelStatistics``."""
    found = {}
    for model in response.model_stats:
        if not model.version.isdigit():
            continue
        stats = model.inference_stats
        last = model.last_inference  # milliseconds since the epoch, 0 for never
        found[model.name, int(model.version)] = VersionCounters(
            requests=int(stats.success.count + stats.fail.count),
            last_at=datetime.fromtimestamp(last / 1000, UTC) if last else None,
            queue_seconds=stats.queue.ns / 1e9,
            failures=int(stats.fail.count),
        )
    return found


def parse_pending(text: str) -> dict[VersionKey, int]:
    """Read the requests that wait or run from a metrics page; versions with none are left out."""
    found: dict[VersionKey, int] = {}
    for labels, value in _PENDING.findall(text):
        named = dict(_LABEL.findall(labels))
        if named.get("version", "").isdigit() and (count := int(float(value))):
            key = (named["model"], int(named["version"]))
            found[key] = found.get(key, 0) + count
    return found


def read_pending(page: MetricsScraper, deadline_seconds: float) -> Mapping[VersionKey, int] | None:
    """Ask a server's metrics page for the requests that wait or run; None where it does not answer. Blocks."""
    try:
        return parse_pending(page.read(deadline_seconds).text)
    except TritonError as error:
        logger.debug("no pending requests from %s: %s", page.url, error)
        return None
