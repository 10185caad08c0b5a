"""One server's metrics page, for several who want it: against a real HTTP server that counts."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from controlplane.errors import TritonTimeoutError, TritonUnavailableError
from controlplane.gpu.triton_metrics import TritonMetricsSource
from controlplane.triton.metrics_scraper import MetricsScraper, fetch
from controlplane.triton.statistics import read_pending

PAGE = b'nv_inference_pending_request_count{model="m",version="1"} 3\n'


class Server(ThreadingHTTPServer):
    """Answers with the page, as long as its gate is open."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.gate = threading.Event()
        self.gate.set()
        self.drips = threading.Event()
        self.status = 200
        self.asked = 0

    def handle_error(self, *_: object) -> None:
        """A client gave up waiting."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/metrics"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked += 1
        self.server.gate.wait(60)
        if self.server.drips.is_set():
            self._drip()
            return
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def _drip(self) -> None:
        """Each read is quick; the whole never ends."""
        self.send_response(200)
        self.end_headers()
        pause = threading.Event()
        while self.server.drips.is_set() and not pause.wait(0.02):
            try:
                self.wfile.write(b"# nothing\n")
            except OSError:
                return

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            yield server
        finally:
            server.gate.set()
            server.drips.clear()
            server.shutdown()
            serving.join()


def test_concurrent_readers_share_one_page(server: Server) -> None:
    page = MetricsScraper(server.url, shared_seconds=600)
    server.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(page.read, 60.0) for _ in range(4)]
        server.gate.set()
        found = {id(one.result()) for one in asked}
    assert (len(found), server.asked) == (1, 1)
    assert read_pending(page, 60.0) == {("m", 1): 3}
    assert server.asked == 1
    page.close()


def test_later_reader_gets_new_page(server: Server) -> None:
    page = MetricsScraper(server.url, shared_seconds=0)
    first, second = page.read(60.0), page.read(60.0)
    assert server.asked == 2
    assert second.at > first.at
    page.close()


def test_failure_is_not_cached(server: Server) -> None:
    page = MetricsScraper(server.url, shared_seconds=600)
    server.status = 503
    with pytest.raises(TritonUnavailableError, match="returned status 503"):
        page.read(60.0)
    assert read_pending(page, 60.0) is None
    server.status = 200
    assert page.read(60.0).text == PAGE.decode()
    page.close()


def test_wait_for_another_read_ends_at_deadline(server: Server) -> None:
    page = MetricsScraper(server.url, shared_seconds=600)
    server.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(page.read, 60.0)
        while not server.asked:
            threading.Event().wait(0.01)
        with pytest.raises(TritonTimeoutError, match=r"took more than 0\.05 s"):
            page.read(0.05)
        server.gate.set()
        assert slow.result().text == PAGE.decode()
    page.close()


def test_wait_for_another_read_counts_against_deadline(server: Server) -> None:
    with httpx.Client() as client:
        assert fetch(client, server.url, 60.0, waited_seconds=1.0) == PAGE.decode()
        server.gate.clear()
        with pytest.raises(TritonTimeoutError, match="took more than 60 s"):
            fetch(client, server.url, 60.0, waited_seconds=59.95)
        asked = server.asked
        with pytest.raises(TritonTimeoutError, match="took more than 60 s"):
            fetch(client, server.url, 60.0, waited_seconds=60.0)
    assert server.asked == asked, "there was no time left to ask"


def test_devices_and_requests_share_page_but_devices_need_fresh_one(server: Server) -> None:
    page = MetricsScraper(server.url, shared_seconds=600)
    devices = TritonMetricsSource(page)
    assert devices.read() == ()
    assert read_pending(page, 60.0) == {("m", 1): 3}
    assert server.asked == 1
    devices.read()
    assert server.asked == 2
    page.close()


def test_late_page_times_out(server: Server) -> None:
    page = MetricsScraper(server.url)
    server.gate.clear()
    with pytest.raises(TritonTimeoutError):
        page.read(0.05)
    page.close()


def test_page_sent_too_slowly_times_out(server: Server) -> None:
    page = MetricsScraper(server.url)
    server.drips.set()
    with pytest.raises(TritonTimeoutError, match=r"took more than 0\.2 s"):
        page.read(0.2)
    page.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/metrics", "127.0.0.1:8002/metrics", "http://[/", ""])
def test_unreachable_server_is_reported(url: str) -> None:
    page = MetricsScraper(url)
    with pytest.raises(TritonUnavailableError, match="cannot be read"):
        page.read(1)
    page.close()
