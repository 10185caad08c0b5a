"""Compare eviction policies on request traces with each other and with a lower bound.

A simulated server with room for a tenth of its models' bytes gets the requests of a trace
(`benchmarks.simulation.traces`). Each load, eviction and wait follows from the control plane's own code in
`controlplane.memory`: usage, policies, protection, the choice of a set. What is simulated is time: an unload takes
1.2 s, a load what the model's load takes, four run at once; the requests themselves take none.

``optimum`` is a lower bound (`benchmarks.simulation.bound`), separate for each column. ``foresight`` is a schedule
that exists: Belady's rule with sizes and costs, evicting the least cost per byte and time to the next use, told the
future. It is a heuristic, and where few models fit others may do better; the best possible lies between the bound and
the best of the rows. ``informed``, for the trace ``bursts`` alone, is a lower bound for policies that know all that the
generator draws from, but not the future (`benchmarks.simulation.information`); it holds for the mean over seeds.
"""

import argparse
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.simulation.bound import Bound, lower_bound
from benchmarks.simulation.engine import Engine
from benchmarks.simulation.foresight import ForesightPolicy
from benchmarks.simulation.information import informed_bound
from benchmarks.simulation.traces import KINDS, Trace, bursts_of, make
from controlplane.memory.policy.eviction import EvictionPolicy, policy_named

RESULTS = Path(__file__).parent / "results"
POLICIES = ("lru", "lfu", "cost", "foresight", "informed", "optimum")
FULL = 1_000_000


@dataclass(frozen=True)
class Row:
    """One policy on one trace. The figures of ``informed`` and ``optimum`` are bounds; they have no waits."""

    trace: str
    policy: str
    cold_starts: int
    load_seconds: float
    p99_wait_seconds: float | None
    bytes_moved: int
    requests: int
    skewed: bool


@dataclass(frozen=True)
class Case:
    """One run."""

    trace: str
    policy: str
    models: int
    requests: int
    rate: float
    share: float
    seed: int


def run(case: Case) -> Row:
    trace = make(case.trace, models=case.models, requests=case.requests, rate=case.rate, seed=case.seed)
    budget = max(int(trace.sizes.sum() * case.share), int(trace.sizes.max()))
    if case.policy in ("informed", "optimum"):
        bound = _informed(case, trace, budget) if case.policy == "informed" else lower_bound(trace, budget)
        return Row(case.trace, case.policy, int(bound.cold_starts), round(bound.load_seconds, 1), None,
                   int(bound.bytes_moved), case.requests, trace.skewed)  # fmt: skip
    outcome = Engine(trace, budget, _policy(case.policy, trace)).run()
    return Row(case.trace, case.policy, outcome.cold_starts, round(outcome.load_seconds, 1),
               round(outcome.p99_wait_seconds, 2), outcome.bytes_moved, case.requests, trace.skewed)  # fmt: skip


def _informed(case: Case, trace: Trace, budget: int) -> Bound:
    return informed_bound(
        trace, bursts_of(models=case.models, requests=case.requests, rate=case.rate, seed=case.seed), budget
    )


def _policy(name: str, trace: Trace) -> EvictionPolicy:
    return ForesightPolicy(trace) if name == "foresight" else policy_named(name)


def measure(cases: Iterable[Case], processes: int) -> list[Row]:
    with ProcessPoolExecutor(processes) as pool:
        rows = []
        for row in pool.map(run, cases):
            print(f"  {row.trace} {row.policy}: {row.load_seconds:.0f} s of loading", flush=True)
            rows.append(row)
        return rows


def report(rows: list[Row]) -> None:
    found = {(row.trace, row.policy): row for row in rows}
    print(f"\n{'trace':9} {'policy':10}{'cold starts':>12}{'loading s':>11}{'of LRU':>8}{'of bound':>10}"
          f"{'p99 wait s':>12}{'GiB moved':>11}")  # fmt: skip
    for row in rows:
        lru, bound = _share(row, found, "lru"), _share(row, found, "optimum")
        of_lru = f"{lru:8.3f}" if lru is not None else f"{'':8}"
        of_bound = f"{bound:10.2f}" if bound is not None else f"{'':10}"
        wait = "" if row.p99_wait_seconds is None else f"{row.p99_wait_seconds:.2f}"
        print(f"{row.trace:9} {row.policy:10}{row.cold_starts:12}{row.load_seconds:11.0f}{of_lru}{of_bound}{wait:>12}"
              f"{row.bytes_moved / 2**30:11.0f}")  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    document = [
        {**asdict(row), "of_lru": _share(row, found, "lru"), "of_bound": _share(row, found, "optimum")} for row in rows
    ]
    (RESULTS / "eviction.json").write_text(json.dumps(document, indent=2) + "\n")


def _share(row: Row, found: Mapping[tuple[str, str], Row], policy: str) -> float | None:
    """Return the seconds of loading as a ratio to those of another policy on the same trace."""
    other = found.get((row.trace, policy))
    return round(row.load_seconds / other.load_seconds, 3) if other is not None and other.load_seconds else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=40_000, help="requests in each trace")
    parser.add_argument("--full", action="store_true", help=f"{FULL} requests in each trace; takes hours")
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=1.0, help="requests a second, on average")
    parser.add_argument("--share", type=float, default=0.1, help="part of all models' bytes that fits")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trace", choices=sorted(KINDS), action="append", help="only these")
    parser.add_argument("--policy", choices=POLICIES, action="append", help="only these")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    requests = FULL if asked.full else asked.requests
    cases = [
        Case(trace, policy, asked.models, requests, asked.rate, asked.share, asked.seed)
        for trace in asked.trace or KINDS
        for policy in asked.policy or POLICIES
        if policy != "informed" or trace == "bursts"
    ]
    report(measure(cases, asked.processes))


if __name__ == "__main__":
    main()
