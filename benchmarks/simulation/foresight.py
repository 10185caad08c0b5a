"""A policy that knows the future: a schedule that can be reached, above the lower bound."""

from collections.abc import Mapping
from datetime import datetime
from typing import Self

import numpy as np

from benchmarks.simulation.engine import START
from benchmarks.simulation.traces import Trace
from controlplane.memory.policy.types import ModelMemory


class ForesightPolicy:
    """Belady's rule with sizes and costs: reload seconds by bytes and by the time until the next use."""

    name = "foresight"

    def __init__(self, trace: Trace) -> None:
        self._uses = {
            f"m{number}": trace.times[trace.models == number] for number in range(len(trace.sizes))
        }  # fmt: skip

    def score(self, model: ModelMemory, now: datetime) -> float:
        at = (now - START).total_seconds()
        uses = self._uses[model.model]
        # Times went through microseconds on their way.
        position = int(np.searchsorted(uses, at + 1e-6, side="right"))
        if position == len(uses):
            return 0.0
        size = sum(footprint.bytes for footprint in model.footprint.values())
        return model.load_seconds / size / float(uses[position] - at)

    def explain(self, model: ModelMemory, now: datetime) -> str:
        return f"used again as the trace says, at {now}: {model.model}"

    def learned(
        self, used: ModelMemory, models: Mapping[str, ModelMemory], budgets: Mapping[str, int], now: datetime  # noqa: ARG002
    ) -> Self:  # fmt: skip
        return self
