"""How long a planning cycle takes for a fleet: nothing changed, 100 models changed, a server died; and its memory.

make bench NAME=placement
python -m benchmarks.placement --servers 1000 --gpus 8 --models 100000
"""

import argparse
import gc
import random
import statistics
import time
from dataclasses import dataclass, replace

import psutil

from controlplane.placement.planner import plan
from controlplane.placement.types import NO_PLAN, Plan, Pool, Server, Workload

GIB = 1 << 30
MIB = 1 << 20
ZONES = 8
GPU_BYTES = 72 * GIB
ROUNDS = 7
SIZES = ((100, 10_000), (300, 30_000), (1_000, 100_000))


@dataclass(frozen=True)
class Row:
    """Times of one fleet, in milliseconds; memory in MiB."""

    servers: int
    models: int
    first: float
    unchanged: float
    rebuilt: float
    changed: float
    died: float
    replaced: int
    memory: float


def fleet(servers: int, gpus: int) -> dict[str, Server]:
    """Servers of two kinds in eight zones."""
    found = {}
    for number in range(servers):
        product = "NVIDIA H200" if number % 4 else "NVIDIA L40S"
        pools = tuple(Pool(f"gpu:{card}", GPU_BYTES, card, product) for card in range(gpus))
        name = f"server-{number:04}"
        labels = {"kind": "large" if number % 4 else "small", "name": name}
        found[name] = Server(name, (Pool("host", 512 * GIB), *pools), f"zone-{number % ZONES}", labels)
    return found


def models(count: int, draw: random.Random) -> dict[str, Workload]:
    """Log-normal sizes round 3 GiB; a tenth pinned, a tenth with two replicas, a tenth with a selector."""
    found = {}
    for number in range(count):
        size = min(max(int(draw.lognormvariate(0.0, 1.0) * 3 * GIB), 100 * MIB), 60 * GIB)
        kind = number % 10
        found[f"model-{number:06}"] = Workload(
            f"model-{number:06}",
            {"gpu": size},
            replicas=2 if kind == 1 else 1,
            min_replicas=2 if kind == 1 else 1,
            guaranteed=kind == 0,
            selector=(("kind", "large"),) if kind == 2 else (),
            gpu_count=1,
        )
    return found


def timed(before: Plan, servers: dict[str, Server], wanted: dict[str, Workload]) -> tuple[float, Plan]:
    """Milliseconds and result, without garbage collection in between."""
    gc.collect()
    gc.disable()
    try:
        began = time.perf_counter()
        made = plan(before, servers, wanted)
        return (time.perf_counter() - began) * 1000, made
    finally:
        gc.enable()


def measure(servers: int, gpus: int, count: int) -> Row:
    """Measure one fleet; medians of several rounds, each from the same plan."""
    draw = random.Random(7)
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    where, wanted = fleet(servers, gpus), models(count, draw)
    first, made = timed(NO_PLAN, where, wanted)
    gc.collect()
    memory = (process.memory_info().rss - before) / MIB
    unchanged, rebuilt, changed, died = [], [], [], []
    replaced = 0
    for _ in range(ROUNDS):
        took, again = timed(made, dict(where), dict(wanted))
        assert again is made
        unchanged.append(took)
        equal = {model: replace(one) for model, one in wanted.items()}
        took, again = timed(made, where, equal)
        assert again is made
        rebuilt.append(took)
        del equal
        grown = {**wanted}
        for model in draw.sample(sorted(wanted), 100):
            grown[model] = replace(wanted[model], bytes={"gpu": min(wanted[model].largest * 2, 60 * GIB)})
        took, after = timed(made, where, grown)
        changed.append(took)
        victim = draw.choice(sorted(where))
        without = {**where, victim: replace(where[victim], trouble=f"{victim} is unreachable")}
        took, after = timed(made, without, wanted)
        died.append(took)
        lost = made.server_usage[victim].models
        assert not any(
            assignment.server == victim and not assignment.waits
            for assignments in after.assignments.values()
            for assignment in assignments
        )
        replaced = max(replaced, len(lost))
    median = statistics.median
    return Row(
        servers, count, first, median(unchanged), median(rebuilt), median(changed), median(died), replaced, memory
    )


def main() -> None:
    """Print one row for each size of fleet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", type=int, help="servers of the only fleet to measure")
    parser.add_argument("--gpus", type=int, default=8, help="GPUs of a server")
    parser.add_argument("--models", type=int, help="models of the only fleet to measure; default: 100 for each server")
    options = parser.parse_args()
    sizes = SIZES
    if options.servers:
        sizes = ((options.servers, options.models or options.servers * 100),)
    print(f"{options.gpus} GPUs a server, {ZONES} zones; milliseconds, median of {ROUNDS} rounds; first: once")
    print(
        "| servers | models | first plan | unchanged | unchanged, values rebuilt | 100 changed | a server died | MiB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for servers, count in sizes:
        row = measure(servers, options.gpus, count)
        print(
            f"| {row.servers:,} | {row.models:,} | {row.first:,.0f} | {row.unchanged:.1f} | {row.rebuilt:.1f} "
            f"| {row.changed:.1f} | {row.died:.1f} (at most {row.replaced} models) | {row.memory:.0f} |"
        )


if __name__ == "__main__":
    main()
