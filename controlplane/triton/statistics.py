"""Request counters of each loaded version, from Triton itself; they include clients that use its own ports.

Counts and times come over gRPC (``ModelStatistics``); only the metrics page has the number of pending requests. A
version's counters restart at zero with every load.
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
        requests: Requests since the load, including failed ones.
        last_at: Time of the newest response (the server's clock); None before the first.
        queue_seconds: Total time that its requests waited in Triton's queue.
        failures: Failed requests.
    """

    requests: int
    last_at: datetime | None
    queue_seconds: float
    failures: int = 0


def parse_statistics(response: Any) -> dict[VersionKey, VersionCounters]:
    """Parse Triton's response to ``ModelStatistics``."""
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
    """Parse the number of pending requests from a metrics page; versions without any are excluded."""
    found: dict[VersionKey, int] = {}
    for labels, value in _PENDING.findall(text):
        named = dict(_LABEL.findall(labels))
        if named.get("version", "").isdigit() and (count := int(float(value))):
            key = (named["model"], int(named["version"]))
            found[key] = found.get(key, 0) + count
    return found


def read_pending(page: MetricsScraper, deadline_seconds: float) -> Mapping[VersionKey, int] | None:
    """Read the number of pending requests from a server's metrics page; None if it does not respond. Blocks."""
    try:
        return parse_pending(page.read(deadline_seconds).text)
    except TritonError as error:
        logger.debug("no pending requests from %s: %s", page.url, error)
        return None
