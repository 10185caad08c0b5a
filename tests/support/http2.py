"""A minimal HTTP/2 client (RFC 9113) that sends a request in chosen pieces. Not for other uses.

Headers are written, and read, as literals without Huffman coding (RFC 7541 section 6.2), which is how HAProxy writes
those that are not in HPACK's static table.
"""

import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1


@dataclass
class Reply:
    """The response to a request.

    Attributes:
        headers: Headers and trailers whose names are not in HPACK's static table, such as those of gRPC.
        data: The body.
        broken: Whether the stream was reset, or the connection closed.
    """

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    broken: bool = False


class Connection:
    """A connection in the clear, for one request after the other. A context manager.

    Args:
        address: host:port.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b""))
        self._stream = -1
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def ask(
        self, path: str, headers: Iterable[tuple[str, str]], pieces: Sequence[bytes], pause_seconds: float = 0.0
    ) -> Reply:
        """Send a POST whose body comes in these pieces, each a frame and a packet of its own, and read the answer."""
        self._stream += 2
        named = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test"), *headers]
        block = b"".join(b"\x00" + _string(name) + _string(value) for name, value in named)
        self._socket.sendall(_frame(_HEADERS, _END_HEADERS, self._stream, block))
        for number, piece in enumerate(pieces, 1):
            if pause_seconds:
                time.sleep(pause_seconds)
            self._socket.sendall(_frame(_DATA, _END_STREAM * (number == len(pieces)), self._stream, piece))
        return self._reply()

    def _reply(self) -> Reply:
        reply = Reply()
        while True:
            head = self._read(9)
            if len(head) < 9:
                reply.broken = True
                return reply
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:9], "big")
            payload = self._read(int.from_bytes(head[:3], "big"))
            if kind in (_SETTINGS, _PING) and not flags & _ACK:
                self._socket.sendall(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
            if kind == _GOAWAY or (kind == _RESET and stream == self._stream):
                reply.broken = True
                return reply
            if stream != self._stream:
                continue
            if kind == _DATA and payload:
                reply.data += payload
                size = len(payload).to_bytes(4, "big")
                self._socket.sendall(_frame(_WINDOW, 0, 0, size) + _frame(_WINDOW, 0, stream, size))
            if kind == _HEADERS:
                reply.headers.update(_literals(payload))
            if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                return reply

    def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            try:
                received = self._socket.recv(65536)
            except ConnectionError:
                received = b""
            if not received:
                return b""
            self._buffer += received
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _string(text: str) -> bytes:
    raw = text.encode("latin-1")
    return _integer(len(raw), 7) + raw


def _integer(value: int, bits: int) -> bytes:
    most = (1 << bits) - 1
    if value < most:
        return bytes([value])
    encoded, value = bytearray([most]), value - most
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _literals(block: bytes) -> Mapping[str, str]:
    found, at = {}, 0
    while at < len(block):
        first = block[at]
        if first & 0x80:
            _, at = _number(block, at, 7)
            continue
        if first & 0xE0 == 0x20:  # the table's size
            _, at = _number(block, at, 5)
            continue
        index, at = _number(block, at, 6 if first & 0x40 else 4)
        name = b""
        if index == 0:
            name, at = _text(block, at)
        value, at = _text(block, at)
        if name:
            found[name.decode("latin-1")] = value.decode("latin-1")
    return found


def _text(block: bytes, at: int) -> tuple[bytes, int]:
    assert not block[at] & 0x80, "a header is written in Huffman's code"
    size, at = _number(block, at, 7)
    return block[at : at + size], at + size


def _number(block: bytes, at: int, bits: int) -> tuple[int, int]:
    most = (1 << bits) - 1
    value, at = block[at] & most, at + 1
    if value < most:
        return value, at
    shift = 0
    while True:
        value += (block[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not block[at - 1] & 0x80:
            return value, at
