"""An HTTP proxy that injects faults of networks, load balancers and overloaded servers into S3 traffic."""

import contextlib
import http.client
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect", "date", "server"}


class Action(Enum):
    """The fault that a request gets."""

    ANSWER = auto()  # the proxy answers with an error; the server never sees it
    RESET_REQUEST = auto()  # the connection is reset in the middle of the request's body; the server never sees it
    LOSE_ANSWER = auto()  # the server acts on it; the connection is reset instead of its answer
    CUT_RESPONSE = auto()  # the connection is reset in the middle of the response's body
    STALL = auto()  # the server acts on it; no answer comes for as long as the proxy runs, or the fault lasts
    REFUSE = auto()  # the connection is reset before anything is read; the server never sees it
    FLIP = auto()  # one bit of the response's body is changed
    FLIP_REQUEST = auto()  # one bit of the request's body is changed


@dataclass
class Fault:
    """A fault for the next ``times`` requests that match, after ``skip`` that are let through.

    Attributes:
        action: What happens.
        method: The requests' HTTP method; empty for all.
        contains: Text in the path or query.
        times: How often.
        skip: How many matching requests go through first.
        status: Of `Action.ANSWER`.
        code: The S3 error code of `Action.ANSWER`.
    """

    action: Action
    method: str = ""
    contains: str = ""
    times: int = 1
    skip: int = 0
    status: int = 503
    code: str = "SlowDown"
    over: threading.Event = field(default_factory=threading.Event)

    def concerns(self, method: str, target: str) -> bool:
        """Return whether the fault applies to a request."""
        return self.method in {"", method} and self.contains in target


@dataclass(frozen=True)
class Seen:
    """A request that the proxy received, and its outcome."""

    method: str
    target: str
    fault: Action | None


@dataclass
class FaultProxy:
    """The proxy's switches and its record.

    Attributes:
        endpoint_url: Where it listens.
        strip_headers: Request headers (lower case) that do not get through.
        seen: Every request, in order.
    """

    endpoint_url: str = ""
    strip_headers: set[str] = field(default_factory=set)
    seen: list[Seen] = field(default_factory=list)
    _faults: list[Fault] = field(default_factory=list)
    _lasting: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def inject(self, fault: Fault) -> None:
        """Arm a fault."""
        with self._lock:
            self._faults.append(fault)

    @contextlib.contextmanager
    def lasting(self, fault: Fault) -> Iterator[None]:
        """A fault for every request that matches, for the length of a block."""
        with self._lock:
            self._lasting.append(fault)
        try:
            yield
        finally:
            with self._lock:
                self._lasting.remove(fault)
            fault.over.set()

    def count(self, method: str, contains: str = "") -> int:
        """Return the number of requests of this kind."""
        return sum(1 for seen in self.seen if seen.method == method and contains in seen.target)

    def take(self, method: str, target: str) -> Fault | None:
        """The fault for a request, and its record; called by the server."""
        with self._lock:
            found = None
            for fault in self._faults:
                if fault.concerns(method, target) and fault.times > 0:
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    found = fault
                    break
            if found is None:
                found = next((fault for fault in self._lasting if fault.concerns(method, target)), None)
            self.seen.append(Seen(method, target, found.action if found else None))
            return found

    def hold(self, fault: Fault) -> None:
        """Block until the proxy is stopped or a lasting fault is over."""
        while not (self._stopping.is_set() or fault.over.wait(0.05)):
            pass

    def stop(self) -> None:
        """End stalled requests."""
        self._stopping.set()


def flipped(data: bytes) -> bytes:
    """The data with one bit changed, in its middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@contextlib.contextmanager
def fault_proxy(upstream_url: str) -> Iterator[FaultProxy]:
    """Run a proxy in front of a server."""
    upstream = urlsplit(upstream_url)
    proxy = FaultProxy()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *arguments: object) -> None:
            """Log nothing."""

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # clients disconnect in these tests
                super().handle()

        def forward(self) -> None:
            fault = proxy.take(self.command, self.path)
            length = int(self.headers.get("Content-Length", 0))
            if fault and fault.action is Action.REFUSE:
                self.reset()
                return
            if fault and fault.action is Action.RESET_REQUEST:
                self.rfile.read(length // 2)
                self.reset()
                return
            body = self.rfile.read(length)
            if fault and fault.action is Action.ANSWER:
                text = f"<Error><Code>{fault.code}</Code><Message>injected</Message></Error>".encode()
                self.answer(fault.status, [("Content-Type", "application/xml")], text)
                return
            status, headers, answer = self.ask(flipped(body) if fault and fault.action is Action.FLIP_REQUEST else body)
            if fault and fault.action is Action.LOSE_ANSWER:
                self.reset()
            elif fault and fault.action is Action.STALL:
                proxy.hold(fault)
                self.reset()
            elif fault and fault.action is Action.CUT_RESPONSE:
                self.answer(status, headers, answer, send=len(answer) // 2)
                self.reset()
            elif fault and fault.action is Action.FLIP:
                self.answer(status, headers, flipped(answer))
            else:
                self.answer(status, headers, answer)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward  # noqa: N815

        def ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=60)
            try:
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in proxy.strip_headers | {"expect", "connection"}:
                        connection.putheader(name, value)
                connection.endheaders(body)
                response = connection.getresponse()
                return response.status, response.getheaders(), response.read()
            finally:
                connection.close()

        def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, send: int | None = None) -> None:
            self.send_response(status)
            length = str(len(body))
            for name, value in headers:
                if name.lower() == "content-length" and self.command == "HEAD":
                    length = value
                if name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
            if status not in {204, 304}:
                self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body if send is None else body[:send])
                self.wfile.flush()

        def reset(self) -> None:
            # With no time to linger, closing sends RST.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.rfile.close()
            self.connection.close()

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
            with contextlib.suppress(OSError):
                super().shutdown_request(request)

    server = Server(("127.0.0.1", 0), Handler)
    proxy.endpoint_url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.stop()
        server.shutdown()
        server.server_close()
        thread.join()
