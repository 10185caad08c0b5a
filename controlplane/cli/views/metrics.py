"""Output of a deployment's metrics: curves, a table, its objectives."""

import time
from collections.abc import Callable, Sequence
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from controlplane.cli.output import Output, span
from controlplane.client.errors import ClientError, NotRunningError, WaitTimeoutError
from controlplane.client.models import Record
from controlplane.domain.metrics import LatencySource, ObjectiveState, Point, ServerUse, TrafficStats

_TICKS = "▁▂▃▄▅▆▇█"
_FROM = {
    LatencySource.SUMMARY: "from Triton's summaries",
    LatencySource.HISTOGRAM: "to the first response, from Triton's histogram",
}


class Metrics(Record):
    """The API's metrics of a deployment."""

    model: str
    at: datetime
    window_seconds: float
    total: TrafficStats
    versions: tuple[TrafficStats, ...] = ()
    points: tuple[Point, ...] = ()
    servers: tuple[ServerUse, ...] = ()
    objectives: tuple[ObjectiveState, ...] = ()


def sparkline(values: Sequence[float | None]) -> str:
    """Draw a curve from zero to its largest value; a missing value is a blank."""
    top = max((value for value in values if value is not None), default=0.0)

    def tick(value: float | None) -> str:
        if value is None:
            return " "
        return _TICKS[min(int(value / top * len(_TICKS)), len(_TICKS) - 1)] if top > 0 else _TICKS[0]

    return "".join(tick(value) for value in values)


def screen(found: Metrics, trouble: str = "") -> RenderableType:
    """Draw all available metrics."""
    total, points = found.total, found.points
    observed = (
        "" if total.covered_seconds >= total.window_seconds - 1 else f", observed for {span(total.covered_seconds)}"
    )
    lines: list[RenderableType] = [
        Text.assemble((found.model, "bold"), f", the last {span(total.window_seconds)}{observed}")
    ]
    if trouble:
        lines.append(Text(trouble, style="yellow"))
    lines += [Text(), _curves(total, points), Text(), _versions(found.versions)]
    for one in found.servers:
        lines.append(Text(_use(one), style="yellow" if one.error else "dim"))
    if found.objectives:
        lines += [Text(), _objectives(found.objectives)]
    return Group(*lines)


def live(read: Callable[[], Metrics], out: Output, *, interval: float, lines: bool) -> None:
    """Show the metrics repeatedly until Ctrl-C.

    Args:
        read: Reads the metrics from the control plane.
        out: The output; with a format for programs, each reading is a document of a stream.
        interval: Seconds between two reads.
        lines: Print one after another; otherwise each replaces the previous one on the screen.
    """
    console = Console(highlight=False, emoji=False)
    found = read()
    if lines:
        while True:
            if out.json_wanted:
                out.event(found)
            else:
                console.print(screen(found))
            time.sleep(interval)
            found = read()
    trouble = ""
    with Live(console=console, screen=True, auto_refresh=False) as view:
        while True:
            view.update(screen(found, trouble), refresh=True)
            time.sleep(interval)
            try:
                found, trouble = read(), ""
            except (NotRunningError, WaitTimeoutError, ClientError) as error:
                trouble = f"last known state: {error.message}"  # a restart of the control plane is no reason to stop


def _curves(total: TrafficStats, points: Sequence[Point]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(style="dim")
    table.add_row(
        "requests",
        f"{total.request_rate:.3g}/s",
        sparkline([point.request_rate for point in points]),
        f"{total.requests:g} in total, {total.inference_rate:.3g} inferences/s",
    )
    failures = ", ".join(f"{count:g} {reason}" for reason, count in sorted(total.failures.items()))
    table.add_row(
        "failures",
        Text(f"{100 * (total.failure_share or 0):.3g} %", style="red" if total.failures else ""),
        sparkline([point.failure_rate for point in points]),
        failures or "none",
    )
    table.add_row(
        "mean",
        _span(total.request_seconds),
        sparkline([point.request_seconds for point in points]),
        f"queue {_span(total.queue_seconds)}, compute {_span(total.compute_seconds)}",
    )
    latency = total.latency
    known = f"p50 {_span(latency.p50_seconds)}, p90 {_span(latency.p90_seconds)}, {_FROM.get(latency.source, '')}"
    table.add_row(
        "p99",
        _span(latency.p99_seconds),
        sparkline([point.p99_seconds for point in points]),
        known if latency.source is not LatencySource.NONE else "no requests, or no summaries",
    )
    table.add_row(
        "batch",
        f"{total.batch_size:.3g}" if total.batch_size is not None else "-",
        sparkline([point.batch_size for point in points]),
        f"{total.inferences:g} inferences in {total.executions:g} executions",
    )
    table.add_row(
        "pending",
        f"{total.pending:g}",
        sparkline([point.pending_max for point in points]),
        f"maximum {total.pending_max:g}",
    )
    return table


def _versions(versions: Sequence[TrafficStats]) -> RenderableType:
    if not versions:
        return Text("no version was loaded in this window", style="dim")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in (
        "VERSION",
        "SERVER",
        "REQUESTS",
        "RATE/S",
        "FAILED",
        "P50",
        "P90",
        "P99",
        "QUEUE",
        "COMPUTE",
        "BATCH",
        "CPU",
    ):
        table.add_column(column, no_wrap=True)
    for one in versions:
        table.add_row(
            str(one.version),
            Text(one.server or "-"),
            f"{one.requests:g}",
            f"{one.request_rate:.3g}",
            f"{sum(one.failures.values()):g}",
            _span(one.latency.p50_seconds),
            _span(one.latency.p90_seconds),
            _span(one.latency.p99_seconds),
            _span(one.queue_seconds),
            _span(one.compute_seconds),
            f"{one.batch_size:.3g}" if one.batch_size is not None else "-",
            f"{one.cpu_cores:.2g}" if one.cpu_cores is not None else "-",
        )
    return table


def _objectives(states: Sequence[ObjectiveState]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("OBJECTIVE", "MET", "BURN RATES"):
        table.add_column(column)
    for state in states:
        rates = ", ".join(
            f"{one.long_rate:.2g} over {span(one.long_seconds)} and {one.short_rate:.2g} over {span(one.short_seconds)}"
            f" (limit {one.factor:.3g})"
            for one in state.windows
        )
        table.add_row(
            Text(state.target), Text("no", style="red") if state.burning else Text("yes", style="green"), rates
        )
    return table


def _use(use: ServerUse) -> str:
    if use.error:
        return f"{use.server}: {use.error}"
    parts = [f"CPU {use.cpu_utilisation:.0%}"] if use.cpu_utilisation is not None else []
    parts += [f"GPU {uuid} {share:.0%}" for uuid, share in use.gpu_utilisation.items()]
    return f"{use.server}: {', '.join(parts) or 'does not report its utilisation'}"


def _span(seconds: float | None) -> str:
    return "-" if seconds is None else span(seconds)
