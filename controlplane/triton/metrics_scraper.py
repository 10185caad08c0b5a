"""Downloads a Triton server's metrics page over HTTP."""

import threading
import time
from dataclasses import dataclass, field

import httpx

from controlplane.errors import TritonTimeoutError, TritonUnavailableError

MAX_BYTES = 64 * 1024 * 1024
"""Size limit of a page; a dozen counters of ten thousand models make 7 MB."""


def fetch(client: httpx.Client, url: str, deadline_seconds: float, *, waited_seconds: float = 0.0) -> str:
    """Download a metrics page. Blocks.

    Args:
        client: The HTTP client.
        url: The page's address.
        deadline_seconds: Time limit; up to twice this time if the transfer stalls just before the end.
        waited_seconds: The part of the time limit that has already passed.

    Raises:
        TritonTimeoutError: The page did not arrive completely in time.
        TritonUnavailableError: The server does not respond, or not with a metrics page.
    """
    left = deadline_seconds - waited_seconds
    end = time.monotonic() + left
    received = bytearray()
    try:
        if left <= 0:
            raise TritonTimeoutError(f"the metrics at {url} took more than {deadline_seconds:g} s", url=url)
        with client.stream("GET", url, timeout=left) as response:
            if response.status_code != httpx.codes.OK:
                raise TritonUnavailableError(f"the metrics at {url} returned status {response.status_code}", url=url)
            for part in response.iter_bytes():
                received += part
                if time.monotonic() > end:
                    raise TritonTimeoutError(f"the metrics at {url} took more than {deadline_seconds:g} s", url=url)
                if len(received) > MAX_BYTES:
                    raise TritonUnavailableError(
                        f"{url} returned more than {MAX_BYTES} bytes; check that it is a metrics URL", url=url
                    )
    except httpx.TimeoutException as error:
        raise TritonTimeoutError(f"the metrics at {url} took more than {deadline_seconds:g} s", url=url) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise TritonUnavailableError(f"the metrics at {url} cannot be read: {error}", url=url) from error
    return received.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Scrape:
    """A downloaded page.

    Attributes:
        text: The page.
        began: When the request started (`time.monotonic`).
        at: When the page was complete (likewise).
    """

    text: str = field(repr=False)
    began: float
    at: float


class MetricsScraper:
    """One server's metrics page, downloaded once for concurrent readers. Safe to use from several threads.

    Args:
        url: The page's address.
        shared_seconds: Maximum age of a page that is shared with another reader. It must be shorter than the interval
            of any reader, so that no reader gets the same page twice.
    """

    def __init__(self, url: str, *, shared_seconds: float = 0.0) -> None:
        self.url = url
        self._shared = shared_seconds
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._got: Scrape | None = None

    def read(self, deadline_seconds: float, *, fresh: bool = False) -> Scrape:
        """Return the page. Blocks.

        Args:
            deadline_seconds: As for `fetch`; includes the time to wait for another reader's download.
            fresh: Do not return a page that was requested before this call. Later readers may share the result.

        Raises:
            TritonTimeoutError: The page did not arrive completely in time.
            TritonUnavailableError: The server does not respond, or not with a metrics page.
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
        """Close the client without waiting for reads in progress."""
        if self._client is not None:
            self._client.close()


def _client(url: str) -> httpx.Client:
    """Return a client for `fetch`.

    The client keeps no connection, because each one would cost the server a thread. It ignores proxies, which are meant
    for the internet. It loads the TLS configuration only for TLS URLs, because loading it costs more than many
    downloads (some 20 ms of a core).
    """
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(trust_env=False, limits=limits, verify=url.startswith("https:"))
