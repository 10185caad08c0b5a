"""The API's documents about rollouts."""

from datetime import datetime

from controlplane.client.models import Record


class Arm(Record):
    """One of the two versions."""

    version: int
    requests: int = 0
    failures: int = 0
    p50_seconds: float | None = None
    p99_seconds: float | None = None


class Test(Record):
    """The present result of one of the tests."""

    signal: str
    odds: float
    needed_odds: float
    worse: bool = False
    figures: str = ""


class Rollout(Record):
    """The state of a rollout."""

    model: str
    phase: str
    strategy: str
    step: int = 0
    steps: int = 0
    weight: float = 0.0
    ready: bool = False
    message: str = ""
    began_at: datetime | None = None
    step_ends_at: datetime | None = None
    old: Arm
    new: Arm
    tests: tuple[Test, ...] = ()
    compared: int = 0
    differing: int = 0
    refused: int = 0
    skipped: int = 0

    @property
    def ended(self) -> bool:
        """Return whether the rollout was promoted or aborted."""
        return self.phase in {"promoted", "aborted"}
