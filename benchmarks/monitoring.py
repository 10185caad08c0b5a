"""What watching costs: processor time of one look at a server's metrics, and memory of the windows.

Pages in Triton's own format for so many models, one look a second, with all of them asked and with one in ten. The peer
is prometheus_client's parser on the same page without our filter and without keeping what did not change.

    python -m benchmarks.monitoring [--models 200] [--looks 120]
"""

import argparse
import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from controlplane.monitoring.monitor import ScrapedServer, ScrapeTarget
from controlplane.monitoring.series import COLUMNS
from controlplane.monitoring.windows import Windows
from controlplane.triton.metrics_page import MetricsParser

RESULTS = Path(__file__).parent / "results"
_STAGES = ("request", "queue", "compute_input", "compute_infer", "compute_output")
_QUANTILES = ("0.5", "0.9", "0.95", "0.99", "0.999")
_REASONS = ("OTHER", "BACKEND", "CANCELED", "REJECTED")


@dataclass
class Row:
    models: int
    busy: float
    page_kib: float
    read_ms: float
    take_ms: float
    parser_ms: float
    ratio: float
    core_percent: float


def page(counts: list[int], rng: random.Random) -> str:
    lines = []
    for model, count in enumerate(counts):
        labels = f'model="model-{model:04}",version="1"'
        lines += [f"nv_inference_{name}{{{labels}}} {count}" for name in ("request_success", "count", "exec_count")]
        lines += [
            f'nv_inference_request_failure{{model="model-{model:04}",reason="{one}",version="1"}} 0' for one in _REASONS
        ]
        for stage in _STAGES:
            lines.append(f"nv_inference_{stage}_duration_us{{{labels}}} {count * 1234}")
            lines.append(f"nv_inference_{stage}_summary_us_count{{{labels}}} {count}")
            lines.append(f"nv_inference_{stage}_summary_us_sum{{{labels}}} {count * 1234}")
            for quantile in _QUANTILES:
                value = rng.randrange(900, 9000) if count % 7 else 1000
                lines.append(f'nv_inference_{stage}_summary_us{{{labels},quantile="{quantile}"}} {value}')
        lines.append(f"nv_inference_pending_request_count{{{labels}}} 0")
    return "\n".join(lines) + "\n"


def measure(models: int, busy: float, looks: int) -> Row:
    rng = random.Random(1)
    counts, asked = [0] * models, range(int(models * busy))
    reader, watched = MetricsParser(), ScrapedServer(ScrapeTarget("one", None))
    read = take = parser = size = 0.0
    text = page(counts, rng)
    for look in range(looks):
        before = text.splitlines()
        for model in asked:
            counts[model] += rng.randrange(1, 50)
        fresh = page(counts, rng).splitlines()
        lines = len(fresh) // models
        # The lines of a model without requests do not change.
        text = "\n".join(fresh[: lines * len(asked)] + before[lines * len(asked) :]) + "\n"
        size = len(text)
        began = time.process_time()
        found = reader.read(text)
        read += time.process_time() - began
        began = time.process_time()
        watched.take(found, None, float(look))
        take += time.process_time() - began
        if look % 10 == 0:
            began = time.process_time()
            for family in text_string_to_metric_families(text):
                list(family.samples)
            parser += (time.process_time() - began) * 10
    ours, theirs = (read + take) / looks, parser / looks
    return Row(
        models, busy, round(size / 1024, 1), round(read / looks * 1e3, 2), round(take / looks * 1e3, 2),
        round(theirs * 1e3, 2), round(ours / theirs, 3), round(ours * 100, 2),
    )  # fmt: skip


def memory() -> dict[str, int]:
    """Bytes of one version's windows: asked every second for twelve hours, and asked for one minute of them."""
    always, rarely = Windows(len(COLUMNS)), Windows(len(COLUMNS))
    row, most = np.ones(len(COLUMNS)), 0
    for second in range(12 * 3600):
        always.add(second, second + 1, row)
        most = max(most, always.nbytes)
        if second < 60:
            rarely.add(second, second + 1, row)
    return {"bound_bytes": always.max_bytes, "always_bytes": most, "rarely_bytes": rarely.nbytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--looks", type=int, default=60)
    asked = parser.parse_args()
    rows = [measure(asked.models, busy, asked.looks) for busy in (1.0, 0.1, 0.0)]
    print(
        f"{'models':>7}{'busy':>6}{'page KiB':>10}{'read ms':>9}{'take ms':>9}{'parser ms':>11}{'ratio':>7}"
        f"{'% of a core':>13}"
    )
    for row in rows:
        print(
            f"{row.models:7}{row.busy:6.0%}{row.page_kib:10.0f}{row.read_ms:9.2f}{row.take_ms:9.2f}{row.parser_ms:11.2f}"
            f"{row.ratio:7.2f}{row.core_percent:13.1f}"
        )
    held = memory()
    print("windows of one version: " + ", ".join(f"{name} {size / 1024:.0f} KiB" for name, size in held.items()))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "monitoring.json").write_text(
        json.dumps({"looks": [asdict(row) for row in rows], "memory": held}, indent=2)
    )


if __name__ == "__main__":
    main()
