"""The answers that clients received: the record with which the end state is compared."""

import threading
import time
from dataclasses import dataclass, field
from enum import Enum


class Answer(Enum):
    """How a request for a change ended, as its client saw it."""

    DONE = "acknowledged"
    REFUSED = "a problem with its cause; its code says whether it was applied"
    LOST = "no answer: it may have been applied"


@dataclass(frozen=True)
class Published:
    """A version that was acknowledged to a client.

    Attributes:
        model: The model.
        version: The acknowledged number.
        sha256: Digest of the sent file.
        factor: Factor of the model.
    """

    model: str
    version: int
    sha256: str
    factor: float


@dataclass(frozen=True)
class Change:
    """A requested change of one alias or deployment.

    Attributes:
        version: The requested version; None for a rollback.
        answer: How the request ended.
        revision: The deployment's revision that was acknowledged.
    """

    version: int | None
    answer: Answer
    revision: int | None = None


@dataclass(frozen=True)
class Refusal:
    """A failed request or operation with its cause."""

    at: float
    what: str
    code: str
    detail: str


@dataclass
class Record:
    """Requests and their answers. Clients write it from their threads; each change has one writer.

    Attributes:
        published: Acknowledged versions.
        sent: Factor by digest of every file that was ever sent.
        aliases: Changes in their order, by model and alias.
        deployments: Changes in their order, by model.
        refusals: Failed requests with their causes.
        inferences: Number of right answers.
        violations: Violations that were found while the clients ran.
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
        """Allow ``what`` ("api", or a model's server as "triton") to fail, because a fault was injected."""
        with self._lock:
            self._excused.setdefault(what, []).append((time.monotonic(), float("inf")))

    def expect(self, what: str) -> None:
        """Require that ``what`` answers again."""
        with self._lock:
            began, _ = self._excused[what][-1]
            self._excused[what][-1] = (began, time.monotonic())

    def is_excused(self, what: str, began: float, ended: float) -> bool:
        """Return whether an injected fault explains a failure between two times."""
        with self._lock:
            return any(began <= until and ended >= since for since, until in self._excused.get(what, ()))
