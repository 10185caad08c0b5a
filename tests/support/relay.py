"""A TCP relay that cuts or stalls what a client sends, as a network does in the middle of an upload."""

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_CHUNK = 65536
_OFFSET = re.compile(rb"\r\nupload-offset: (\d+)\r\n", re.IGNORECASE)


@dataclass
class Relay:
    """The relay's switches and its count.

    Attributes:
        url: Where it listens.
        cut_after: Close the connection once it carried this many bytes from the client; used up by the first one.
        stall_after: Send on no more than this many bytes from the client, and keep the connection open.
        sent: Bytes that clients sent, over all connections, as far as they were sent on.
        offsets: The header ``Upload-Offset`` of each request that has one, in bytes.
    """

    url: str = ""
    cut_after: int | None = None
    stall_after: int | None = None
    sent: int = 0
    offsets: list[int] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def allow(self, carried: int, count: int) -> bool:
        """Return whether to forward the next ``count`` bytes of a connection."""
        with self._lock:
            if self.cut_after is not None and carried + count > self.cut_after:
                self.cut_after = None
                return False
            self.sent += count
            return True

    def stalls(self, carried: int) -> bool:
        """Return whether to stall a connection."""
        if self.stall_after is not None and carried >= self.stall_after:
            self.stalled.set()
            return True
        return False


@contextlib.contextmanager
def relay_to(url: str) -> Iterator[Relay]:
    """Run a relay in front of an HTTP server."""
    target = urlsplit(url)
    listener = socket.create_server(("127.0.0.1", 0))
    relay = Relay(url=f"http://127.0.0.1:{listener.getsockname()[1]}")
    open_sockets: list[socket.socket] = []

    def upstream(client: socket.socket, server: socket.socket) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while data := client.recv(_CHUNK):
                if relay.stalls(carried):
                    while client.recv(_CHUNK):
                        pass
                    break
                if not relay.allow(carried, len(data)):
                    break
                carried += len(data)
                relay.offsets.extend(int(offset) for offset in _OFFSET.findall(data))
                server.sendall(data)
        _close(client, server)

    def downstream(client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(_CHUNK):
                client.sendall(data)
        _close(client, server)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((target.hostname or "", target.port or 80))
                open_sockets.extend((client, server))
                for work in (upstream, downstream):
                    threading.Thread(target=work, args=(client, server), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield relay
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        _close(*open_sockets)
        thread.join(5)


def _close(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
