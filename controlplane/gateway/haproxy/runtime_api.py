"""HAProxy's runtime API: commands over its administration socket."""

import asyncio
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from controlplane.errors import GatewayError
from controlplane.gateway.haproxy.backends import Backend, resolved

_TIMEOUT_SECONDS = 5.0
_ABSENT = "No such server"
_BATCH = 100
"""Maximum number of commands in one line; HAProxy reads a line into one buffer."""


class RouteCounter(NamedTuple):
    """The key under which HAProxy counts a request: the backend, the model and the active version."""

    backend: str
    model: str
    version: str

    @property
    def protocol(self) -> str:
        """The protocol of the request."""
        return "http" if self.backend.startswith("h-") else "grpc"


class RuntimeApi:
    """A client of one HAProxy. Every call opens a connection; a local one costs less than a millisecond.

    Args:
        socket: Path of its administration socket.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def apply(self, commands: Sequence[str]) -> None:
        """Run commands that have no output.

        Raises:
            GatewayError: HAProxy does not answer, or refused one of the commands.
        """
        for start in range(0, len(commands), _BATCH):
            batch = commands[start : start + _BATCH]
            answer = (await self._ask("; ".join(batch))).strip()
            if answer:
                raise GatewayError(
                    f"HAProxy rejected a command in the batch that begins with {batch[0]!r}: {answer.splitlines()[0]}"
                )

    async def move(self, backend: Backend, slots: int) -> None:
        """Set the addresses of a server in all its places, and take it into service or, as a spare, out of it.

        Args:
            backend: The server.
            slots: How many slots there are.

        Raises:
            GatewayError: HAProxy does not answer or refused.
            InvalidInputError: A host name is unknown.
        """
        await self.apply([f"set server servers/{backend.key} state maint"])
        if backend.spare:
            return
        (http, http_port), (grpc, grpc_port) = await resolved(backend.http), await resolved(backend.grpc)
        places = [("servers", http, http_port), ("servers-grpc", grpc, grpc_port)]
        for number in range(slots):
            places += [(f"h-{number}", http, http_port), (f"g-{number}", grpc, grpc_port)]
        for start in range(0, len(places), _BATCH):
            batch = [
                f"set server {place}/{backend.key} addr {address} port {port}"
                for place, address, port in places[start : start + _BATCH]
            ]
            for line in (await self._ask("; ".join(batch))).splitlines():
                # The other servers' own slots do not have this one.
                if line.strip() and "changed" not in line and "no need to change" not in line and _ABSENT not in line:
                    raise GatewayError(f"HAProxy did not take an address of {backend.key}: {line.strip()}")
        await self.apply([f"set server servers/{backend.key} state ready"])

    async def in_flight(self, slot: int, model: str) -> int:
        """Return how many requests for a model are in flight through a slot, over either protocol, to any version."""
        in_flight = await self._table("show table inflight data.conn_cur gt 0")
        places = (f"h-{slot}", f"g-{slot}")
        return sum(
            one["conn_cur"] for route, one in in_flight.items() if route.backend in places and route.model == model
        )

    async def counters(self) -> "dict[RouteCounter, dict[str, int]]":
        """Return the counters of the table ``inflight``."""
        return await self._table("show table inflight")

    async def _table(self, question: str) -> "dict[RouteCounter, dict[str, int]]":
        found = {}
        for line in (await self._ask(question)).splitlines():
            words = dict(word.partition("=")[::2] for word in line.split() if "=" in word)
            if (key := words.get("key", "")).count("/") == 2:
                found[RouteCounter(*key.split("/"))] = {
                    name: int(value) for name, value in words.items() if value.isdigit()
                }
        return found

    async def statistics(self) -> list[dict[str, str]]:
        """Return ``show stat``: one row for every frontend, backend and server."""
        text = (await self._ask("show stat")).lstrip("# ")
        return list(csv.DictReader(io.StringIO(text)))

    async def pid(self) -> int:
        """Return the process id of the HAProxy that answers."""
        for line in (await self._ask("show info")).splitlines():
            if line.startswith("Pid:"):
                return int(line.removeprefix("Pid:"))
        raise GatewayError("HAProxy does not report its process id")

    async def _ask(self, line: str) -> str:
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_unix_connection(str(self._socket))
                try:
                    writer.write(line.encode() + b"\n")
                    answer = await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            raise GatewayError(f"HAProxy does not answer on {self._socket}: {error or 'no answer in time'}") from error
        return answer.decode(errors="replace")
