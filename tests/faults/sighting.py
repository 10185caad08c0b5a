"""Looks for the first report of a fault in `/readyz`, events, deployments, servers and answers to clients."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.faults.planes import client
from tests.faults.record import Record

_PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Sighting:
    """The first report.

    Attributes:
        seconds: From the injection.
        text: Text of the report.
    """

    seconds: float
    text: str


class Sightings:
    """Watches a control plane from the injection of a fault.

    Args:
        url: The control plane's API.
        record: Answers to clients, which also count as reports.
        cause: Regular expression that a report of this fault matches.

    Attributes:
        others: Other reports up to the first report of this fault.
    """

    def __init__(self, url: str, record: Record, cause: str) -> None:
        self._url = url
        self._record = record
        self._cause = re.compile(cause, re.IGNORECASE)
        self._found: Sighting | None = None
        self._began = 0.0
        self._stop = threading.Event()
        self._seen = threading.Event()
        self.others: list[str] = []

    @property
    def first(self) -> Sighting | None:
        return self._found

    def restart(self) -> None:
        """Restart the clock; reports that were seen before stay known."""
        self._began = time.monotonic()

    def wait(self, seconds: float) -> Sighting | None:
        """Wait for the first report."""
        self._seen.wait(seconds)
        return self._found

    @contextmanager
    def watching(self) -> Iterator["Sightings"]:
        """Watch during a block; reports that exist at its beginning do not count."""
        with client(self._url, "watcher", 5) as http:
            events = _last_event(http)
            known = set(_lines(http, events))
        self._began = time.monotonic()
        thread = threading.Thread(target=self._watch, args=(events, known), name="watch", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _watch(self, events: int, known: set[str]) -> None:
        with client(self._url, "watcher", 5) as http:
            while not self._stop.is_set() and self._found is None:
                for text in self._reports(http, events):
                    if text not in known and self._cause.search(text):
                        self._found = Sighting(time.monotonic() - self._began, text)
                        self._seen.set()
                        break
                    if text not in known:
                        known.add(text)
                        self.others.append(text)
                self._stop.wait(_PAUSE_SECONDS)

    def _reports(self, http: httpx.Client, events: int) -> Iterator[str]:
        for refusal in self._record.refusals:
            if refusal.at >= self._began:
                yield f"answer {refusal.code}: {refusal.detail}"
        yield from _lines(http, events)


def _lines(http: httpx.Client, events: int) -> list[str]:
    lines: list[str] = []
    for read in (_events(events), _deployments, _readiness):
        try:
            lines += read(http)
        except (httpx.TransportError, ValueError, KeyError, TypeError):
            continue  # a control plane that is down or slow reports nothing here
    return lines


def _last_event(http: httpx.Client) -> int:
    return int(http.get("/v1/events", params={"limit": 1}).json()["last_id"])


def _events(after: int) -> Callable[[httpx.Client], list[str]]:
    def read(http: httpx.Client) -> list[str]:
        items = http.get("/v1/events", params={"after": after, "limit": 1000}).json()["items"]
        return [f"event {one['id']} {one['reason']} {one['subject']}: {one['message']}" for one in items]

    return read


def _deployments(http: httpx.Client) -> list[str]:
    items: list[dict[str, Any]] = http.get("/v1/deployments").json()["items"]
    return [
        f"deployment {one['model']} {one['revision']} {one['status']['phase']}: {one['status']['message']}"
        for one in items
        if one["status"]
    ]


def _readiness(http: httpx.Client) -> list[str]:
    checks = http.get("/readyz").json()["checks"]
    return [f"readyz {check['name']}: {check['message']}" for check in checks if not check["ok"]]
