"""What the clients were told: the record that the end is held against."""

import threading
import time
from dataclasses import dataclass, field
from enum import Enum


class Answer(Enum):
    """How a request for a change ended, as its client saw it."""

    DONE = "acknowledged"
    REFUSED = "a problem with its cause; whether it was done is told by its code"
    LOST = "no answer: it may have been done"


@dataclass(frozen=True)
class Published:
    """A version that a client was told of.

    Attributes:
        model: The model.
        version: The number it was told.
        sha256: Of the file it sent.
        factor: What the model multiplies by.
    """

    model: str
    version: int
    sha256: str
    factor: float


@dataclass(frozen=True)
class Change:
    """A change of one alias or deployment that was asked for.

    Attributes:
        version: The version it was to name; for a rollback, None.
        answer: How the request ended.
        revision: The deployment's revision that was acknowledged.
    """

    version: int | None
    answer: Answer
    revision: int | None = None


@dataclass(frozen=True)
class Refusal:
    """A request or an operation that failed, with the cause it gave."""

    at: float
    what: str
    code: str
    detail: str


@dataclass
class Record:
    """What was asked, what was answered. Clients write it from their threads; each change has one writer.

    Attributes:
        published: Acknowledged versions.
        sent: Factor by digest of everything that was ever sent to be published.
        aliases: Changes in their order, by model and alias.
        deployments: Changes in their order, by model.
        refusals: What failed, with its cause.
        inferences: How many right answers.
        violations: What must not be, found while the clients ran.
    """

    published: list[Published] = field(default_factory=list)
    sent: dict[str, float] = field(default_factory=dict)
    aliases: dict[tuple[str, str], list[Change]] = field(default_factory=dict)
    deployments: dict[str, list[Change]] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    inferences: int = 0
    violations: list[str] = field(default_factory=list)
    in_order: threading.Lock = field(default_factory=threading.Lock)
    """Held from a change's request to its record, so that the record has the order in which they were made."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _excused: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def refused(self, what: str, code: str, detail: str) -> None:
        self.refusals.append(Refusal(time.monotonic(), what, code, detail))

    def violated(self, what: str) -> None:
        with self._lock:
            if len(self.violations) < 200 and what not in self.violations:
                self.violations.append(what)

    def answered(self) -> None:
        self.inferences += 1

    def excuse(self, what: str) -> None:
        """From now on ``what`` ("api", or a model's server as "triton") may fail: it was broken on purpose."""
        with self._lock:
            self._excused.setdefault(what, []).append((time.monotonic(), float("inf")))

    def expect(self, what: str) -> None:
        """From now on ``what`` has to answer again."""
        with self._lock:
            began, _ = self._excused[what][-1]
            self._excused[what][-1] = (began, time.monotonic())

    def is_excused(self, what: str, began: float, ended: float) -> bool:
        """Whether a failure between two moments had its reason in what was broken on purpose."""
        with self._lock:
            return any(began <= until and ended >= since for since, until in self._excused.get(what, ()))
