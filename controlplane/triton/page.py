"""Gets a Triton server's metrics page over HTTP."""

import time

import httpx

from controlplane.errors import TritonTimeoutError, TritonUnavailableError

MAX_BYTES = 64 * 1024 * 1024
"""A dozen counters of ten thousand models make 7 MB."""


def fetch(client: httpx.Client, url: str, deadline_seconds: float) -> str:
    """Get a metrics page. Blocks.

    Raises:
        TritonTimeoutError: It did not come whole in time.
        TritonUnavailableError: The server does not answer, or not with a page.
    """
    end = time.monotonic() + deadline_seconds
    received = bytearray()
    try:
        with client.stream("GET", url, timeout=deadline_seconds) as response:
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


def page_client() -> httpx.Client:
    """Return a client for `fetch`. Close it.

    No connection is kept: each would cost the server a thread. A proxy set for the internet is not meant for it.
    """
    return httpx.Client(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
