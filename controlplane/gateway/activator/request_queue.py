"""The room in which requests wait for their model: bounded in number and in bytes, for each model and in all."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from controlplane.domain.units import size_text
from controlplane.errors import TooManyWaitingError


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What may wait.

    Attributes:
        requests_per_model: Requests for one model.
        requests: Requests in all.
        bytes_per_model: Bytes of the requests for one model.
        bytes: Bytes in all.
    """

    requests_per_model: int
    requests: int
    bytes_per_model: int
    bytes: int


@dataclass
class QueuedRequest:
    """One request's place in the room.

    Attributes:
        model: What it waits for.
        held_bytes: How much of it is held.
    """

    model: str
    held_bytes: int = 0


class RequestQueue:
    """Counts what waits. For one event loop.

    Attributes:
        requests: Requests that wait, by model.
        held: Bytes of them, by model.
    """

    def __init__(self, limits: QueueLimits) -> None:
        self.limits = limits
        self.requests: Counter[str] = Counter()
        self.held: Counter[str] = Counter()

    @contextmanager
    def place(self, model: str, size: int = 0) -> Iterator[QueuedRequest]:
        """Take a place for a request of so many bytes, and give it back at the end.

        Raises:
            TooManyWaitingError: There is none.
        """
        limits = self.limits
        self._check(model, self.requests[model] + 1, limits.requests_per_model, "requests wait for it")
        self._check(model, self.requests.total() + 1, limits.requests, "requests wait for models")
        place = QueuedRequest(model)
        self.requests[model] += 1
        try:
            self.hold(place, size)
            yield place
        finally:
            self.requests[model] -= 1
            self.held[model] -= place.held_bytes
            if not self.requests[model]:
                del self.requests[model], self.held[model]

    def hold(self, place: QueuedRequest, size: int) -> None:
        """Hold so many bytes more of a request.

        Raises:
            TooManyWaitingError: There is no room for them.
        """
        limits, model = self.limits, place.model
        self._check(model, self.held[model] + size, limits.bytes_per_model, "of requests wait for it", sizes=True)
        self._check(model, self.held.total() + size, limits.bytes, "of requests wait for models", sizes=True)
        self.held[model] += size
        place.held_bytes += size

    def _check(self, model: str, wanted: int, limit: int, what: str, *, sizes: bool = False) -> None:
        if wanted > limit:
            shown = size_text(limit) if sizes else str(limit)
            raise TooManyWaitingError(
                f"{model} is not loaded, and {shown} {what} already, the limit; try again soon",
                model=model,
                limit=limit,
            )
