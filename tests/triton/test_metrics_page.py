"""One server's metrics page, for several who want it: against a real HTTP server that counts."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from controlplane.errors import TritonTimeoutError, TritonUnavailableError
from controlplane.triton.page import PageSource
from controlplane.triton.statistics import read_pending

PAGE = b'nv_inference_pending_request_count{model="m",version="1"} 3\n'


class Server(ThreadingHTTPServer):
    """Answers with the page, as long as its gate is open."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.gate = threading.Event()
        self.gate.set()
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
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

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
            server.shutdown()
            serving.join()


def test_who_asks_at_about_the_same_moment_gets_the_same_page(server: Server) -> None:
    page = PageSource(server.url, shared_seconds=600)
    server.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(page.read, 60.0) for _ in range(4)]
        server.gate.set()
        found = {id(one.result()) for one in asked}
    assert (len(found), server.asked) == (1, 1)
    assert read_pending(page, 60.0) == {("m", 1): 3}
    assert server.asked == 1
    page.close()


def test_who_comes_later_gets_a_new_one(server: Server) -> None:
    page = PageSource(server.url, shared_seconds=0)
    first, second = page.read(60.0), page.read(60.0)
    assert server.asked == 2
    assert second.at > first.at
    page.close()


def test_a_failure_is_not_kept(server: Server) -> None:
    page = PageSource(server.url, shared_seconds=600)
    server.status = 503
    with pytest.raises(TritonUnavailableError, match="answer 503"):
        page.read(60.0)
    assert read_pending(page, 60.0) is None
    server.status = 200
    assert page.read(60.0).text == PAGE.decode()
    page.close()


def test_nobody_waits_longer_than_the_deadline_for_somebody_elses_look(server: Server) -> None:
    page = PageSource(server.url, shared_seconds=600)
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


def test_a_page_that_does_not_come_in_time(server: Server) -> None:
    page = PageSource(server.url)
    server.gate.clear()
    with pytest.raises(TritonTimeoutError):
        page.read(0.05)
    page.close()
