"""Copies a bounded number of clients' requests, on demand, so that they can become golden samples.

While a recording runs, HAProxy sends a sample of the model's requests to the activator, as it does for a rollout. The
copies are only in memory until the recording ends. They are never logged. Mutable; belongs to one event loop.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.domain.rollout.sampling import PARTS
from controlplane.errors import ConflictError

REQUEST_BYTES_MAX = 1024 * 1024
"""Larger requests are not copied."""
_PARTS = PARTS // 100
"""Requests per million that HAProxy draws if there are more than it measures for a rollout; below that, all."""


@dataclass(frozen=True, slots=True)
class CopiedRequest:
    """A client's request.

    Attributes:
        body: The HTTP body, or the gRPC message.
        head_bytes: Length of the JSON head of an HTTP body; None if the whole body is JSON.
        grpc: Whether it came over gRPC.
    """

    body: bytes
    head_bytes: int | None = None
    grpc: bool = False


@dataclass
class _Recording:
    count: int
    found: dict[CopiedRequest, None] = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)


class TrafficRecorder:
    """The recordings that run. For one event loop."""

    def __init__(self) -> None:
        self._open: dict[str, _Recording] = {}

    def parts(self) -> Mapping[str, int]:
        """Return how many requests per million HAProxy must draw, by model with a recording."""
        return dict.fromkeys(self._open, _PARTS)

    def offer(self, model: str, request: CopiedRequest) -> None:
        """Copy a request if its model is being recorded; equal requests are copied once."""
        recording = self._open.get(model)
        if recording is None or recording.done.is_set() or len(request.body) > REQUEST_BYTES_MAX:
            return
        recording.found[request] = None
        if len(recording.found) >= recording.count:
            recording.done.set()

    async def record(self, model: str, count: int, seconds: float) -> list[CopiedRequest]:
        """Return the next different requests to a model: ``count`` of them, or those that came in time.

        Raises:
            ConflictError: The model is being recorded already.
        """
        if model in self._open:
            raise ConflictError(f"requests to {model} are being recorded already; wait until that ends", model=model)
        recording = self._open[model] = _Recording(count)
        try:
            async with asyncio.timeout(seconds):
                await recording.done.wait()
        except TimeoutError:
            pass
        finally:
            del self._open[model]
        return list(recording.found)
