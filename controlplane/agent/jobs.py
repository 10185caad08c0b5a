"""Work that takes longer than one request can wait: the same request again waits for the same work."""

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from controlplane.servers.agent_protocol import Result, Waiting

_KEPT = 256
"""Ended work whose result no request has asked for."""


@dataclass
class Jobs:
    """Runs each piece of work once, however often it is requested, and work on one model one after the other.

    Args:
        threads: How many pieces of work run at once.
    """

    threads: int = 4
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _running: dict[str, "Future[Result]"] = field(default_factory=dict)
    _models: dict[str, threading.Lock] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="agent-work")

    def run(self, kind: str, name: str, message: Waiting, work: Callable[[], Result]) -> Result:
        """Return the result of work, or one that is not done if it takes longer than ``message.wait_seconds``.

        Raises:
            ControlPlaneError: The work failed.
        """
        content = message.model_dump_json(exclude={"wait_seconds"})
        key = f"{kind} {hashlib.sha256(content.encode()).hexdigest()}"
        with self._guard:
            future = self._running.get(key)
            if future is None:
                future = self._running[key] = self._pool.submit(self._alone, name, work)
                self._forget()
        try:
            result = future.result(message.wait_seconds)
        except TimeoutError:
            if not future.done():
                return Result(done=False)
            result = future.result()
        finally:
            if future.done():
                with self._guard:
                    if self._running.get(key) is future:
                        del self._running[key]
        return result

    def exclusive(self, name: str) -> threading.Lock:
        """Return the lock of a model, which its candidate shares: a candidate's folder becomes the model's."""
        with self._guard:
            return self._models.setdefault(name.partition("~")[0], threading.Lock())

    def close(self) -> None:
        """Start no more work; work in progress ends on its own."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _alone(self, name: str, work: Callable[[], Result]) -> Result:
        with self.exclusive(name):
            return work()

    def _forget(self) -> None:
        """Drop results that no request has asked for; the same request then does the work again, which is harmless."""
        ended = [key for key, future in self._running.items() if future.done()]
        for key in ended[: max(0, len(ended) - _KEPT)]:
            del self._running[key]
