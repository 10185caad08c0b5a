"""Plays a trace against one device, with the decisions of `controlplane.memory` and nothing else in between."""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import numpy as np

from benchmarks.simulation.traces import Trace
from controlplane.memory.policy.eviction import EvictionPolicy, EvictionRules, choose, early_evictions
from controlplane.memory.policy.types import HOST, Footprint, FootprintSource, Mode, ModelMemory, Usage
from controlplane.memory.policy.usage import used

START = datetime(2026, 1, 1, tzinfo=UTC)
UNLOAD_SECONDS = 1.2
"""From the call until the memory is free: about 1.1 s in state UNLOADING, as measured, and a poll."""
MAX_LOADS = 4
RETRY_SECONDS = 1.0
"""Poll interval while a load waits for the end of a model's residence time; that of the control plane."""
QUEUE_LOOK = 8
"""How far into the queue each decision looks."""


@dataclass(frozen=True)
class Outcome:
    """What one policy did on one trace."""

    cold_starts: int
    load_seconds: float
    p99_wait_seconds: float
    mean_wait_seconds: float
    bytes_moved: int
    evictions: int


@dataclass(slots=True)
class _State:
    memory: ModelMemory
    waiting: list[float] = field(default_factory=list)
    evicted_at: datetime | None = None


class Engine:
    """One run."""

    def __init__(self, trace: Trace, budget: int, policy: EvictionPolicy, use: Callable[..., Usage] = used) -> None:
        self._trace = trace
        self._policy = policy
        self._use = use
        self._rules = EvictionRules()
        self._sizes: list[int] = trace.sizes.tolist()
        self._free, self._freeing = budget, 0
        self._budgets = {HOST: budget}
        self._states = [
            _State(
                ModelMemory(
                    model=f"m{number}",
                    mode=Mode.ON_DEMAND,
                    version=1,
                    footprint={HOST: Footprint(int(size), source=FootprintSource.MEASURED)},
                    keep_alive_seconds=None,
                    load_seconds=float(seconds),
                )
            )
            for number, (size, seconds) in enumerate(zip(trace.sizes, trace.load_seconds, strict=True))
        ]
        self._known = {state.memory.model: state.memory for state in self._states}
        self._loaded: dict[str, int] = {}
        self._queue: deque[int] = deque()
        self._events: list[tuple[float, int, str, int]] = []
        self._number = 0
        self._in_flight = 0
        self._retry_at = -1.0
        self._waits: list[float] = []
        self._cold = self._moved = self._evictions = 0
        self._seconds = 0.0

    def run(self) -> Outcome:
        times, models = self._trace.times.tolist(), self._trace.models.tolist()
        events = self._events
        for at, number in zip(times, models, strict=True):
            while events and events[0][0] <= at:
                self._happen(*heapq.heappop(events))
            self._request(at, number)
        while events:
            self._happen(*heapq.heappop(events))
        waits = np.zeros(len(times))
        waits[: len(self._waits)] = self._waits
        return Outcome(self._cold, self._seconds, float(np.quantile(waits, 0.99)), float(waits.mean()), self._moved,
                       self._evictions)  # fmt: skip

    def _request(self, at: float, number: int) -> None:
        state = self._states[number]
        now = START + timedelta(seconds=at)
        memory = self._change(number, usage=self._use(state.memory.usage, now))
        self._policy = self._policy.learned(memory, self._known, self._budgets, now)
        if memory.loaded and not memory.busy:
            return
        state.waiting.append(at)
        if memory.demanded_at is None:
            self._change(number, demanded_at=now)
            if memory.evictions or state.evicted_at:
                count = early_evictions(memory.evictions, state.evicted_at, now, self._rules)
                self._change(number, evictions=count)
                state.evicted_at = None
            self._queue.append(number)
            self._pump(at)

    def _happen(self, at: float, _: int, what: str, number: int) -> None:
        state = self._states[number] if number >= 0 else None
        now = START + timedelta(seconds=at)
        if state is not None and what == "loaded":
            self._in_flight -= 1
            self._change(number, loaded=True, busy=False, loaded_at=now, demanded_at=None)
            self._loaded[state.memory.model] = number
            self._waits.extend(at - since for since in state.waiting)
            state.waiting.clear()
        elif state is not None:
            self._free += self._sizes[number]
            self._freeing -= self._sizes[number]
            self._change(number, loaded=False, busy=False, loaded_at=None)
        if self._queue:
            self._pump(at)

    def _pump(self, at: float) -> None:
        """Work through the queue like `controlplane.memory.policy.admission.decide_all` does; its rules' numbers are given."""  # noqa: E501
        now = START + timedelta(seconds=at)
        promised, stuck = 0, False
        for number in list(islice(self._queue, QUEUE_LOOK)):
            if self._in_flight >= MAX_LOADS:  # 3
                return
            if self._states[number].memory.busy:  # its own unload is not over
                continue
            need = self._sizes[number]
            missing = need + promised - self._free - self._freeing
            if missing <= 0 and need <= self._free:  # 4
                self._load(at, number)
                continue
            if missing > 0:  # 5, 7
                victims = choose(self._view(), {HOST: missing}, self._policy, now, rules=self._rules)
                stuck |= victims is None
                for victim in victims or ():
                    self._unload(at, now, self._loaded.pop(victim.model))
            promised += need
        if stuck and self._retry_at <= at:
            self._retry_at = at + RETRY_SECONDS
            self._push(self._retry_at, "retry", -1)

    def _view(self) -> list[ModelMemory]:
        return [self._states[number].memory for number in self._loaded.values()]

    def _load(self, at: float, number: int) -> None:
        state = self._states[number]
        self._queue.remove(number)
        self._in_flight += 1
        self._free -= self._sizes[number]
        self._change(number, busy=True)
        self._cold += 1
        self._seconds += state.memory.load_seconds
        self._moved += self._sizes[number]
        self._push(at + state.memory.load_seconds, "loaded", number)

    def _unload(self, at: float, now: datetime, number: int) -> None:
        state = self._states[number]
        self._evictions += 1
        self._freeing += self._sizes[number]
        self._change(number, loaded=False, busy=True)
        state.evicted_at = now
        self._push(at + UNLOAD_SECONDS, "released", number)

    def _change(self, number: int, **changes: Any) -> ModelMemory:
        state = self._states[number]
        state.memory = self._known[state.memory.model] = replace(state.memory, **changes)
        return state.memory

    def _push(self, at: float, what: str, number: int) -> None:
        self._number += 1
        heapq.heappush(self._events, (at, self._number, what, number))
