"""The queue of requests that wait for their model: limited in number and in bytes, for each model and in total."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from controlplane.domain.units import size_text
from controlplane.errors import TooManyWaitingError


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The limits of the queue.

    Attributes:
        requests_per_model: Requests for one model.
        requests: Requests in total.
        bytes_per_model: Bytes of the requests for one model.
        bytes: Bytes in total.
    """

    requests_per_model: int
    requests: int
    bytes_per_model: int
    bytes: int


@dataclass
class QueuedRequest:
    """One request in the queue.

    Attributes:
        model: The model it waits for.
        held_bytes: Bytes of the request that are in memory.
    """

    model: str
    held_bytes: int = 0


class RequestQueue:
    """Counts waiting requests. For one event loop.

    Attributes:
        requests: Waiting requests, by model.
        held: Bytes of the waiting requests, by model.
    """

    def __init__(self, limits: QueueLimits) -> None:
        self.limits = limits
        self.requests: Counter[str] = Counter()
        self.held: Counter[str] = Counter()

    @contextmanager
    def place(self, model: str, size: int = 0) -> Iterator[QueuedRequest]:
        """Add a request of ``size`` bytes to the queue while the context is open.

        Raises:
            TooManyWaitingError: The queue is full.
        """
        limits = self.limits
        self._check(model, self.requests[model] + 1, limits.requests_per_model, "requests for this model")
        self._check(model, self.requests.total() + 1, limits.requests, "requests in total")
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
        """Count ``size`` more bytes of a request.

        Raises:
            TooManyWaitingError: They exceed a limit.
        """
        limits, model = self.limits, place.model
        self._check(model, self.held[model] + size, limits.bytes_per_model, "of requests for this model", sizes=True)
        self._check(model, self.held.total() + size, limits.bytes, "of requests in total", sizes=True)
        self.held[model] += size
        place.held_bytes += size

    def _check(self, model: str, wanted: int, limit: int, what: str, *, sizes: bool = False) -> None:
        if wanted > limit:
            shown = size_text(limit) if sizes else str(limit)
            raise TooManyWaitingError(
                f"{model} is not loaded, and the request queue is full (limit: {shown} {what}); try again later",
                model=model,
                limit=limit,
            )
