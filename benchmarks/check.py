"""Run the short forms of the benchmarks and compare their ratios with `ceilings.toml`: ``python -m benchmarks.check``.

Every figure is a ratio to a peer in the same run, so a busy machine slows both sides. A benchmark with a figure that
falls short is run once more before it fails, since one bad moment can spoil a short run.
"""

import argparse
import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CEILINGS = HERE / "ceilings.toml"
RESULTS = HERE / "results"

Rows = Sequence[Mapping[str, Any]]
Measure = Callable[["Benchmark"], Rows]
"""Runs a benchmark's short form and returns its rows; none where it failed."""


class CeilingsError(Exception):
    """``ceilings.toml`` is not valid; the message says what is wrong."""


@dataclass(frozen=True)
class Limit:
    """What is demanded of one figure.

    Attributes:
        row: The fields that select the row.
        figure: A field of it, or ``one / other`` of two fields.
        aim: What it should be.
        bound: What it must not pass.
        lower_is_better: Whether `bound` is a ceiling; else it is a floor.
    """

    row: Mapping[str, Any]
    figure: str
    aim: float
    bound: float
    lower_is_better: bool

    @property
    def name(self) -> str:
        """The row and the figure, for a message."""
        return f"{', '.join(str(value) for value in self.row.values())}: {self.figure}"

    @property
    def demand(self) -> str:
        """The aim and the bound, for a message."""
        return f"aim {self.aim:g}, {'ceiling' if self.lower_is_better else 'floor'} {self.bound:g}"

    def seen(self, rows: Rows) -> float | None:
        """Return the figure; None where the row is missing, or has no such number."""
        found = [row for row in rows if all(row.get(key) == value for key, value in self.row.items())]
        values = [found[0].get(field.strip()) for field in self.figure.split("/")] if len(found) == 1 else []
        if not values or any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
            return None
        if len(values) == 1:
            return float(values[0])
        return values[0] / values[1] if values[1] else None

    def falls_short(self, seen: float | None) -> bool:
        """Return whether a figure is missing or passes the bound; what is no number does as well."""
        if seen is None:
            return True
        return not (seen <= self.bound if self.lower_is_better else seen >= self.bound)


@dataclass(frozen=True)
class Benchmark:
    """One benchmark's short form and what is demanded of it."""

    name: str
    arguments: tuple[str, ...]
    limits: tuple[Limit, ...]


def read_ceilings(path: Path = CEILINGS) -> tuple[Benchmark, ...]:
    """Read what is demanded.

    Raises:
        CeilingsError: A benchmark or a key is unknown, or a limit has no bound.
    """
    document = tomllib.loads(path.read_text())
    return tuple(_benchmark(name, entry) for name, entry in document.items())


def _benchmark(name: str, entry: Mapping[str, Any]) -> Benchmark:
    if not (HERE / f"{name}.py").is_file():
        raise CeilingsError(f"[{name}]: there is no benchmark {name!r}")
    if unknown := entry.keys() - {"arguments", "rows"}:
        raise CeilingsError(f"[{name}] has the unknown key {min(unknown)!r}; expected arguments and rows")
    if not entry.get("rows"):
        raise CeilingsError(f"[{name}] demands nothing: add [[{name}.rows]]")
    limits = tuple(_limit(f"[[{name}.rows]] number {number}", one) for number, one in enumerate(entry["rows"], 1))
    return Benchmark(name, tuple(entry.get("arguments", ())), limits)


def _limit(where: str, entry: Mapping[str, Any]) -> Limit:
    bounds = entry.keys() & {"ceiling", "floor"}
    if entry.keys() != {"row", "figure", "aim", *bounds} or len(bounds) != 1:
        raise CeilingsError(
            f"{where} has the keys {', '.join(sorted(entry))}; expected row, figure, aim and either ceiling or floor"
        )
    (bound,) = bounds
    return Limit(entry["row"], entry["figure"], float(entry["aim"]), float(entry[bound]), bound == "ceiling")


def short_of(benchmark: Benchmark, rows: Rows) -> list[str]:
    """Return what falls short, each with aim, bound and what was seen."""
    found = []
    for limit in benchmark.limits:
        seen = limit.seen(rows)
        if limit.falls_short(seen):
            shown = "not measured" if seen is None else f"{seen:.3g}"
            found.append(f"{benchmark.name}: {limit.name}: {limit.demand}, seen {shown}")
    return found


def check(benchmarks: Iterable[Benchmark], measure: Measure, say: Callable[[str], None] = print) -> list[str]:
    """Run the benchmarks and return what falls short in two runs.

    Args:
        benchmarks: The benchmarks.
        measure: Runs one.
        say: Takes the lines of the report.
    """
    short: list[str] = []
    for benchmark in benchmarks:
        rows = measure(benchmark)
        if first := short_of(benchmark, rows):
            for line in first:
                say(f"falls short, so the benchmark runs again: {line}")
            rows = measure(benchmark)
        short += short_of(benchmark, rows)
        for limit in benchmark.limits:
            seen = limit.seen(rows)
            shown = "not measured" if seen is None else f"{seen:.3g}"
            passed = "FALLS SHORT" if limit.falls_short(seen) else "ok"
            say(f"{passed}: {benchmark.name}: {limit.name}: {shown} ({limit.demand})")
    return short


def flattened(document: Any) -> list[Mapping[str, Any]]:
    """Return the rows of a benchmark's results; of a document of several tables, those of all of them.

    A table that is an object and no list of rows becomes one row, whose field ``what`` is the table's name.
    """
    if isinstance(document, list):
        return [row for row in document if isinstance(row, Mapping)]
    rows: list[Mapping[str, Any]] = []
    for name, table in document.items():
        rows += flattened(table) if isinstance(table, list) else [{"what": name, **table}]
    return rows


def run(benchmark: Benchmark) -> Rows:
    """Run a benchmark's short form in a process of its own and return its rows; none where it fails."""
    results = RESULTS / f"{benchmark.name}.json"
    results.unlink(missing_ok=True)  # figures of an earlier run must not pass for this one's
    command = [sys.executable, "-m", f"benchmarks.{benchmark.name}", *benchmark.arguments]
    print(f"\n$ python {' '.join(command[1:])}", flush=True)
    began = time.monotonic()
    code = subprocess.run(command, check=False).returncode
    print(f"{benchmark.name} ended with exit code {code} after {time.monotonic() - began:.0f} s", flush=True)
    return flattened(json.loads(results.read_text())) if code == 0 and results.is_file() else []


def main() -> int:
    """Return the exit code: 0 when no figure falls short."""
    benchmarks = read_ceilings()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *(one.name for one in benchmarks)], help="only these")
    names = parser.parse_args().names
    began = time.monotonic()
    short = check([one for one in benchmarks if not names or one.name in names], run)
    print(f"\nchecked in {time.monotonic() - began:.0f} s")
    for line in short:
        print(f"falls short: {line}", file=sys.stderr)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
