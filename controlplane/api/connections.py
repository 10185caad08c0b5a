"""Limits on the connections of the REST API: their number, from one address and in total, and how slow they may be.

uvicorn has no deadline for a request that is never completed, so any client that reaches the port could hold all of the
process's file descriptors, which the leader's lease, the store and loads on demand need too.
"""

import asyncio
import json
import logging
import resource
from collections import Counter
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

logger = logging.getLogger(__name__)

_API_SHARE = 3
"""The API gets at most one in this many of the process's file descriptors."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits on connections.

    Attributes:
        total: Open connections in total.
        per_source: Open connections from one address.
        header_seconds: Time from the first byte of a request until its headers are complete.
        idle_seconds: Longest pause within the body of a request while the application could read more of it.
    """

    total: int
    per_source: int
    header_seconds: float
    idle_seconds: float


def raise_descriptor_limit() -> int:
    """Raise the soft limit on open files to the hard one; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            logger.warning("failed to raise the limit on open files above %d: %s", soft, error)
            return soft
    return hard


def connection_limits(
    total: int, per_source: int, header_seconds: float, idle_seconds: float, descriptors: int
) -> ConnectionLimits:
    """Return the limits, lowered to what the process's file descriptors allow.

    Args:
        total: Requested limit on connections in total.
        per_source: Requested limit on connections from one address.
        header_seconds: See `ConnectionLimits`.
        idle_seconds: See `ConnectionLimits`.
        descriptors: File descriptors that the process may open.
    """
    possible = max(1, descriptors // _API_SHARE) if descriptors > 0 else total
    if possible < total:
        logger.warning(
            "the API accepts %d connections instead of %d: the process's limit on open files is "
                                                            "%d (ulimit -n)",
            possible, total, descriptors,
        )  # fmt: skip
    total = min(total, possible)
    return ConnectionLimits(total, min(per_source, max(1, total // 2)), header_seconds, idle_seconds)


def bounded_protocol(limits: ConnectionLimits) -> type[HttpToolsProtocol]:
    """Return uvicorn's HTTP protocol with these limits; they apply to all of its connections together."""
    sources: Counter[str] = Counter()

    class BoundedProtocol(HttpToolsProtocol):
        """One connection."""

        _source: str | None = None
        _timer: asyncio.TimerHandle | None = None
        _heard_at = 0.0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            source = self.client[0] if self.client else ""
            what = ""
            if sources.total() >= limits.total:
                what = f"the limit of {limits.total} open connections to the API is reached"
            elif sources[source] >= limits.per_source:
                what = f"{source} has reached the limit of {limits.per_source} open connections from one address"
            if what:
                transport.write(_refusal(f"{what}; close some, or try again later"))
                transport.close()
                return
            self._source = source
            sources[source] += 1
            self._expect_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            if self._source is not None:
                sources[self._source] -= 1
                if not sources[self._source]:
                    del sources[self._source]
                self._source = None
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._source is None:
                return
            self._heard_at = self.loop.time()
            super().data_received(data)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            if self._timer is None:
                self._expect_headers()

        def on_headers_complete(self) -> None:
            self._stop_timer()
            self._timer = self.loop.call_later(limits.idle_seconds, self._check_body)
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._stop_timer()
            super().on_message_complete()

        def _expect_headers(self) -> None:
            self._timer = self.loop.call_later(limits.header_seconds, self._end_late)

        def _check_body(self) -> None:
            silent = self.loop.time() - self._heard_at
            # No data can arrive while the application does not read.
            if self.flow.read_paused or silent < limits.idle_seconds:
                self._timer = self.loop.call_later(max(limits.idle_seconds - silent, 1.0), self._check_body)
            else:
                self._end_late()

        def _end_late(self) -> None:
            self._timer = None
            if not self.transport.is_closing():
                self.transport.abort()

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return BoundedProtocol


def _refusal(detail: str) -> bytes:
    problem: dict[str, Any] = {
        "type": "about:blank", "title": "Too many connections", "status": 503, "code": "too-many-connections",
        "detail": detail,
    }  # fmt: skip
    body = json.dumps(problem).encode()
    return (
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n"
        b"connection: close\r\ncontent-length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    )
