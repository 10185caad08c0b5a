"""A real HTTP receiver that can answer, fail, hang, stop and start again."""

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Received(NamedTuple):
    """One request as it came, and when (monotonic)."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float


class Receiver:
    """Records every POST and answers with `status`; hangs while `hanging` is set."""

    def __init__(self) -> None:
        self.status = 200
        self.received: list[Received] = []
        self.hanging = threading.Event()
        self._free = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?token=very-secret-token"

    def start(self) -> None:
        """Listen; again at the same port after a `stop`."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.received.append(Received(self.path, headers, body, time.monotonic()))
                if receiver.hanging.is_set():
                    receiver._free.wait(60)
                self.send_response(receiver.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # a client that gave up waiting

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop, so that connections are refused."""
        self._free.set()
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join(10)
            self._server = None

    def matching(self, what: Callable[[Received], bool]) -> list[Received]:
        return [one for one in list(self.received) if what(one)]
