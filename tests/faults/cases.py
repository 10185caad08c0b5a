"""Cases: which fault is injected, how it is reported and how it heals; and the table of results."""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.clients import LostError, RefusedError
from tests.faults.sighting import Sighting, Sightings

if TYPE_CHECKING:
    from tests.faults.stage import Stage

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "faults.json"


@dataclass
class Trial:
    """One injection.

    Attributes:
        stage: The system.
        sightings: Looks for the report.
        detected: The first report; None where there was none.
        healed: Seconds to the first good answer, from the injection if the fault ends automatically, else from its end.
        problems: Violated expectations.
    """

    stage: "Stage"
    sightings: Sightings
    detected: Sighting | None = None
    healed: float | None = None
    problems: list[str] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    def injected(self) -> None:
        """Start the measured time to detection; everything before was preparation."""
        self.sightings.restart()

    def lifted(self) -> None:
        """Mark the end of the fault; the healing time starts here."""
        self._began = time.monotonic()

    def heals(self, good: Callable[[], bool], seconds: float = 240) -> None:
        """Wait for the first good answer."""
        end = time.monotonic() + seconds
        while not good():
            if time.monotonic() > end:
                self.problems.append(f"no good answer within {seconds:g} s")
                return
            time.sleep(0.03)
        self.healed = time.monotonic() - self._began


@dataclass(frozen=True)
class Case:
    """One kind of fault.

    Attributes:
        name: Its name in the table.
        run: Injects it once, while clients work.
        cause: Regular expression of its report; empty if the fault must stay unnoticed.
        quick: How often in the short version.
        long: How often in the long version.
        each: How many faults one run of it injects.
    """

    name: str
    run: Callable[[Trial], None]
    cause: str = ""
    quick: int = 1
    long: int = 3
    each: int = 1


def quick(cases: Sequence[Case]) -> list[Case]:
    """The cases of the short version."""
    return [case for case in cases if case.quick]


@dataclass(frozen=True)
class Row:
    """The results of one kind of fault. Times are in seconds."""

    fault: str
    injected: int
    violations: list[str]
    detect_seconds: list[float]
    heal_seconds: list[float]
    reports: list[str] = field(default_factory=list)


def inject(stage: "Stage", case: Case, times: int) -> Row:
    """Inject a fault several times under traffic, and check all invariants after each."""
    trials: list[Trial] = []
    for _ in range(times):
        with _trial(stage, case) as trial:
            try:
                case.run(trial)
            except (RefusedError, LostError) as error:
                trial.problems.append(f"a request of the case failed: {error}")
            if case.cause:
                trial.detected = trial.sightings.wait(60)
                if trial.detected is None:
                    trial.problems.append(f"the fault was not reported: {trial.sightings.others[-8:]}")
        trials.append(trial)
        if trial.problems:
            break  # the system is not in the state that the next injection expects
    problems = [problem for trial in trials for problem in trial.problems]
    stage.record.violations.clear()
    return Row(
        case.name,
        len(trials) * case.each,
        problems,
        [trial.detected.seconds for trial in trials if trial.detected],
        [trial.healed for trial in trials if trial.healed is not None],
        [trial.detected.text for trial in trials if trial.detected],
    )


@contextmanager
def _trial(stage: "Stage", case: Case) -> Iterator[Trial]:
    sightings = Sightings(stage.url, stage.record, case.cause or "(?!)")
    with stage.traffic.running():
        time.sleep(stage.lead_seconds)  # so that work is in flight
        with sightings.watching():
            trial = Trial(stage, sightings)
            yield trial
    trial.problems += stage.at_rest()


def table(rows: Sequence[Row], *, head: bool = True) -> str:
    """Return the rows as a text table with median and worst times."""
    titles = ("fault", "injected", "violations", "find: median", "worst", "heal: median", "worst")
    body = [
        (
            row.fault,
            str(row.injected),
            str(len(row.violations)),
            *_median_and_worst(row.detect_seconds),
            *_median_and_worst(row.heal_seconds),
        )
        for row in rows
    ]
    lines = [titles, *body] if head else body
    widths = [max(len(line[column]) for line in (titles, *body)) for column in range(len(titles))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _median_and_worst(seconds: Sequence[float]) -> tuple[str, str]:
    return (f"{statistics.median(seconds):.2f} s", f"{max(seconds):.2f} s") if seconds else ("-", "-")


def write(rows: Sequence[Row], path: Path = RESULTS) -> None:
    """Write the rows as JSON; rows of cases that were not run stay."""
    new = [
        {
            "fault": row.fault,
            "injected": row.injected,
            "violations": len(row.violations),
            "detect_seconds": _summary(row.detect_seconds),
            "heal_seconds": _summary(row.heal_seconds),
        }
        for row in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    ran = {row.fault for row in rows}
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    documents = [row for row in before if row["fault"] not in ran] + new
    path.write_text(json.dumps(documents, indent=1) + "\n", encoding="utf-8")


def _summary(seconds: Sequence[float]) -> dict[str, float] | None:
    return {"median": round(statistics.median(seconds), 3), "worst": round(max(seconds), 3)} if seconds else None
