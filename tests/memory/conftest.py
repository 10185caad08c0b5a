"""Fixtures for the tests of the memory policy."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from controlplane.memory.policy.types import HOST, Footprint, FootprintSource, Mode, ModelMemory, Usage

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture
def model() -> Callable[..., ModelMemory]:
    """A loaded, idle model: by default old enough to be evicted."""

    def make(name: str, size: int = 100, *, device: str = HOST, used: float | None = None, rate: float = 0.0,
             pending: int = 0, **changes: Any) -> ModelMemory:  # fmt: skip
        usage = Usage(None if used is None else NOW - timedelta(seconds=used), rate, pending)
        given: dict[str, Any] = {
            "mode": Mode.ON_DEMAND,
            "version": 1,
            "footprint": {device: Footprint(size, source=FootprintSource.MEASURED)},
            "loaded": True,
            "loaded_at": NOW - timedelta(hours=9),
            "usage": usage,
        }
        return ModelMemory(model=name, **{**given, **changes})

    return make
