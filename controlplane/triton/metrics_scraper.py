"""Gets a Triton server's metrics page over HTTP."""

import threading
import time
from dataclasses import dataclass, field

import httpx

from controlplane.errors import TritonTimeoutError, TritonUnavailableError

MAX_BYTES = 64 * 1024 * 1024
"""A dozen counters of ten thousand models make 7 MB."""


def fetch(client: httpx.Client, url: str, deadline_seconds: float, *, waited_seconds: float = 0.0) -> str:
    """Get a metrics page. Blocks.

    Args:
        client: Asks.
        url: The page's address.
        deadline_seconds: How long it may take while it comes; twice that where it stalls just before the end.
        waited_seconds: How much of that is gone.

    Raises:
        TritonTimeoutError: It did not come whole in time.
        TritonUnavailableError: The server does not answer, or not with a page.
    """
    left = deadline_seconds - waited_seconds
    end = time.monotonic() + left
    received = bytearray()
    try:
        if left <= 0:
            raise TritonTimeoutError(f"the metrics at {url} took more than {deadline_seconds:g} s", url=url)
        with client.stream("GET", url, timeout=left) as response:
            if response.status_code != httpx.codes.OK:
                raise TritonUnavailableError(f"the metrics at {url} answer {response.status_code}", url=url)
            for part in response.iter_bytes():
                received += part
                if time.monotonic() > end:
                    raise TritonTimeoutError(f"the metrics at {url} took more than {deadline_seconds:g} s", url=url)
                if len(received) > MAX_BYTES:
                    raise TritonUnavailableError(f"{url} sends more than {MAX_BYTES} bytes; is it metrics?", url=url)
    except httpx.TimeoutException as error:
        raise TritonTimeoutError(f"the metrics at {url} took more than {deadline_seconds:g} s", url=url) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise TritonUnavailableError(f"the metrics at {url} cannot be read: {error}", url=url) from error
    return received.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Scrape:
    """A page as it was got.

    Attributes:
        text: The page.
        began: When it was asked for (`time.monotonic`).
        at: When it had come (likewise).
    """

    text: str = field(repr=False)
    began: float
    at: float


class MetricsScraper:
    """One server's metrics page, got once for all who want it at about the same moment. For any thread.

    Args:
        url: Its address.
        shared_seconds: Who asks so soon after somebody else gets what that one got. Less than the time between two
            looks of anyone, so that nobody sees the same page twice.
    """

    def __init__(self, url: str, *, shared_seconds: float = 0.0) -> None:
        self.url = url
        self._shared = shared_seconds
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._got: Scrape | None = None

    def read(self, deadline_seconds: float, *, fresh: bool = False) -> Scrape:
        """Get the page. Blocks.

        Args:
            deadline_seconds: As `fetch` takes it; to wait for somebody else's look counts, too.
            fresh: Take none that was asked for before this call. Others may have it then.

        Raises:
            TritonTimeoutError: It did not come whole in time.
            TritonUnavailableError: The server does not answer, or not with a page.
        """
        asked = time.monotonic()
        if not self._lock.acquire(timeout=deadline_seconds):
            raise TritonTimeoutError(f"the metrics at {self.url} took more than {deadline_seconds:g} s", url=self.url)
        try:
            began, got = time.monotonic(), self._got
            if got is None or (got.began < asked if fresh else began - got.at > self._shared):
                if self._client is None:
                    self._client = _client(self.url)
                text = fetch(self._client, self.url, deadline_seconds, waited_seconds=began - asked)
                self._got = got = Scrape(text, began, time.monotonic())
            return got
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the client; whoever is reading is not waited for."""
        if self._client is not None:
            self._client.close()


def _client(url: str) -> httpx.Client:
    """Return a client for `fetch`.

    No connection is kept: each would cost the server a thread. A proxy set for the internet is not meant for it. What
    TLS needs is read where there is TLS alone: that costs more than getting many pages (some 20 ms of a core).
    """
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(trust_env=False, limits=limits, verify=url.startswith("https:"))
