"""Bounds on the API's connections, with a real uvicorn: slow requests are ended, and no address takes all there are."""

import asyncio
import contextlib
import json
import resource
import socket
from collections.abc import AsyncIterator

import uvicorn
from starlette.types import Receive, Scope, Send

from controlplane.api.connections import (
    ConnectionLimits,
    bounded_protocol,
    connection_limits,
    raise_descriptor_limit,
)
from controlplane.asgi_server import Server

REQUEST = b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the body."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def serving(limits: ConnectionLimits) -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(echo, http=bounded_protocol(limits), log_config=None, lifespan="off", ws="none")
        server = Server(config)
        task = await server.begin(listener)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await task


async def answer_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> bytes:
    """Send bytes; return the answer with its body, or what there is when the connection ends."""
    writer.write(data)
    await writer.drain()
    async with asyncio.timeout(30):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            return error.partial
        length = next(line for line in head.lower().splitlines() if line.startswith(b"content-length:"))
        return head + await reader.readexactly(int(length.partition(b":")[2]))


async def test_incomplete_requests_are_closed_after_the_timeout() -> None:
    async with serving(ConnectionLimits(100, 50, header_seconds=0.3, idle_seconds=0.3)) as port:
        for begun in (b"", b"POST /x HTTP/1.1\r\nhost:", REQUEST, REQUEST + b"123"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.suppress(ConnectionResetError):
                assert await answer_on(reader, writer, begun) == b"", begun
            writer.close()


async def test_slow_request_that_makes_progress_is_answered() -> None:
    async with serving(ConnectionLimits(100, 50, header_seconds=5.0, idle_seconds=2.0)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for byte in (b"1", b"2", b"3", b"4"):
            writer.write(REQUEST + byte if byte == b"1" else byte)
            await writer.drain()
            await asyncio.sleep(0.6)  # in all longer than the idle limit
        assert (await answer_on(reader, writer, b"5")).endswith(b"12345")
        # The connection stays usable.
        assert (await answer_on(reader, writer, REQUEST + b"abcde")).endswith(b"abcde")
        writer.close()


async def test_connections_from_one_address_are_limited() -> None:
    async with serving(ConnectionLimits(8, 4, header_seconds=30.0, idle_seconds=30.0)) as port:
        mine = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
        for reader, writer in mine:  # each is known to the server once it has answered
            assert (await answer_on(reader, writer, REQUEST + b"12345")).endswith(b"12345")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        refused = await answer_on(reader, writer, b"")
        assert refused.startswith(b"HTTP/1.1 503 ")
        problem = json.loads(refused.partition(b"\r\n\r\n")[2])
        assert problem["detail"].startswith("127.0.0.1 has reached the limit of 4 open connections")
        writer.close()
        other = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
        assert (await answer_on(*other, REQUEST + b"other")).endswith(b"other")
        # A connection that is closed makes room.
        mine[0][1].close()
        async with asyncio.timeout(30):
            while True:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                with contextlib.suppress(ConnectionError):
                    if (await answer_on(reader, writer, REQUEST + b"again")).endswith(b"again"):
                        break
                writer.close()
                await asyncio.sleep(0.05)
        for _, open_one in (*mine[1:], other, (reader, writer)):
            open_one.close()


def test_connection_limit_leaves_file_descriptors_free() -> None:
    assert connection_limits(1000, 500, 1, 1, descriptors=1024) == ConnectionLimits(341, 170, 1, 1)
    assert connection_limits(1000, 500, 1, 1, descriptors=65_536) == ConnectionLimits(1000, 500, 1, 1)
    assert connection_limits(1000, 2000, 1, 1, descriptors=65_536).per_source == 500
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        assert raise_descriptor_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0] == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
