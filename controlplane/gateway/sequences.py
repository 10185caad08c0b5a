"""Keeps the requests of a sequence on one replica. Mutable; belongs to one event loop. No I/O.

Triton keeps the state of a sequence in one model instance, so every request from ``sequence_start`` to
``sequence_end`` must reach the same server and the same version. A gateway remembers where each open sequence runs. A
sequence that it does not know (after a restart, or because another gateway got its start) goes to the server that a
hash of its id selects, which is the same on every gateway as long as the set of servers stays the same.

Triton ends a sequence that gets no request for ``max_sequence_idle_microseconds`` of its model; so does this module.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from controlplane.domain.names import candidate_name

_KNOWN_MAX = 100_000
"""Open sequences that are remembered; the hash of its id places a further one."""
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """What a request says about its sequence.

    Attributes:
        id: The sequence's id, a number or a string.
        start: Whether the request is the first one.
        end: Whether the request is the last one.
    """

    id: str
    start: bool = False
    end: bool = False


@dataclass(slots=True)
class OpenSequence:
    """Where a sequence runs.

    Attributes:
        model: The model's own name.
        id: The sequence's id.
        server: The server.
        version: The version that its requests name; empty if they name none.
        candidate: Whether it runs on a rollout's new version, under the candidate's name.
        idle_seconds: Time without a request after which Triton ends it.
        expires_at: Time, on the monotonic clock, at which it ends without a further request.
        in_flight: Requests that are not answered.
        ended: Whether its last request was sent.
    """

    model: str
    id: str
    server: str
    version: str
    candidate: bool
    idle_seconds: float
    expires_at: float
    in_flight: int = 0
    ended: bool = False

    @property
    def triton_name(self) -> str:
        """The name under which the model is loaded there."""
        return candidate_name(self.model) if self.candidate else self.model


class Sequences:
    """The open sequences of one gateway.

    Args:
        clock: Returns the time in seconds on a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[tuple[str, str], OpenSequence] = {}
        self._swept_at = 0

    def find(self, model: str, step: SequenceStep) -> OpenSequence | None:
        """Return where the sequence of a request runs; None if it is not open."""
        found = self._open.get((model, step.id))
        if found is not None and self._over(found):
            del self._open[model, step.id]
            return None
        return found

    def begin(
        self, model: str, step: SequenceStep, server: str, version: str, idle_seconds: float, *, candidate: bool = False
    ) -> OpenSequence:
        """Record where a sequence runs from now on."""
        expires_at = self._clock() + idle_seconds
        one = OpenSequence(model, step.id, server, version, candidate, idle_seconds, expires_at)
        self._sweep()
        if len(self._open) < _KNOWN_MAX or (model, step.id) in self._open:
            self._open[model, step.id] = one
        return one

    def forget(self, one: OpenSequence) -> None:
        """Remove a sequence whose server does not know it any more."""
        if self._open.get((one.model, one.id)) is one:
            del self._open[one.model, one.id]

    @contextmanager
    def used(self, one: OpenSequence, step: SequenceStep) -> Iterator[None]:
        """Count a request of a sequence while the context is open; the last one ends the sequence."""
        one.in_flight += 1
        one.ended = step.end
        try:
            yield
        finally:
            one.in_flight -= 1
            one.expires_at = self._clock() + one.idle_seconds
            if one.ended and not one.in_flight:
                self.forget(one)

    def count(self, server: str, triton_name: str) -> int:
        """Return the number of open sequences on a server under a name."""
        return sum(
            one.server == server and one.triton_name == triton_name and not self._over(one)
            for one in self._open.values()
        )

    async def wait_ended(self, server: str, triton_name: str) -> None:
        """Wait until no sequence is open on a server under a name."""
        while self.count(server, triton_name):  # noqa: ASYNC110 - a sequence also ends because its time is up
            await asyncio.sleep(_POLL_SECONDS)

    async def ended(self, server: str, triton_name: str, seconds: float) -> int:
        """Wait until no sequence is open on a server under a name; after a time limit forget them.

        Returns:
            The number of forgotten sequences.
        """
        try:
            async with asyncio.timeout(seconds):
                await self.wait_ended(server, triton_name)
        except TimeoutError:
            return self.drop(server, triton_name)
        return 0

    def drop(self, server: str, triton_name: str) -> int:
        """Forget the open sequences on a server under a name, and return how many there were."""
        lost = [one for one in self._open.values() if (one.server, one.triton_name) == (server, triton_name)]
        for one in lost:
            self.forget(one)
        return len(lost)

    def _over(self, one: OpenSequence) -> bool:
        return not one.in_flight and self._clock() >= one.expires_at

    def _sweep(self) -> None:
        """Remove the sequences that ended without a last request, each time that their number has doubled."""
        if len(self._open) >= max(1024, 2 * self._swept_at):
            self._open = {key: one for key, one in self._open.items() if not self._over(one)}
            self._swept_at = len(self._open)


def place(servers: Sequence[str], model: str, sequence_id: str) -> str:
    """Return the server for a sequence: every gateway selects the same, and a server that leaves moves no other one."""

    def weight(server: str) -> bytes:
        return hashlib.blake2b("\n".join((server, model, sequence_id)).encode(), digest_size=8).digest()

    return max(servers, key=weight)
