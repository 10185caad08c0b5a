"""Output of the progress and the result of a tuning."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from controlplane.cli.output import Output, size, span
from controlplane.cli.progress import ended, states
from controlplane.client.http import Client
from controlplane.client.models import Operation
from controlplane.domain.tuning import Setting, Trial, TrialState
from controlplane.errors import InvalidInputError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)
_COLUMNS = ("", "setting", "round", "clients", "requests/s", "±", "p50 ms", "p99 ms", "answers", "memory", "state")
_STYLES = {
    TrialState.MEASURED: "",
    TrialState.DROPPED: "dim",
    TrialState.WRONG: "red",
    TrialState.MEMORY: "yellow",
    TrialState.FAILED: "red",
    TrialState.TIME: "dim",
}


def parse_size(text: str) -> int:
    """Parse a number of bytes: ``2GiB``, ``512M``, ``1000000``. K, M, G, T are powers of 1024, like ``GiB``.

    Raises:
        InvalidInputError: The text is not a size above 0.
    """
    match = _SIZE.fullmatch(text.strip())
    count = 0 if match is None else int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))
    if count <= 0:
        raise InvalidInputError(f"{text!r} is not a valid size; use for example 2GiB, 512MiB or a number of bytes")
    return count


def follow_tuning(client: Client, out: Output, body: Mapping[str, Any]) -> dict[str, Any]:
    """Start a tuning and show it until it ends; Ctrl-C cancels it. Return its result.

    Raises:
        OperationFailedError: It failed or was cancelled.
    """
    operation = client.read(Operation, client.post("/v1/tunings", dict(body)))
    try:
        with _Shown(out) as show:
            for state in states(client, operation, None):
                operation = state
                show(operation)
    except KeyboardInterrupt:
        out.note("cancelling; removing the copy")
        client.post(f"/v1/operations/{operation.id}/cancel", read_seconds=660)
        raise
    return ended(operation).result or {}


def show_tuning(out: Output, result: Mapping[str, Any]) -> None:
    """Print the measurements with the frontier marked, and the best setting."""
    trials = _trials(result["trials"])
    edge = {(one["trial"], one["clients"]) for one in result["frontier"]}
    best = result.get("best") or {}
    rows = list(_rows(trials, edge, (best.get("trial"), best.get("clients"))))
    out.table(_COLUMNS, rows)
    out.line()
    out.note("> best, * on the frontier (no setting has both more requests/s and a lower p99), = present setting")
    for trial in trials:
        if trial.message and trial.state in {TrialState.WRONG, TrialState.FAILED}:
            out.note(f"{trial.setting}: {trial.message}", style=_STYLES[trial.state])
    if result["met"]:
        out.line(result["message"], style="green")
    present = result.get("present")
    if best and present and best["measurement"] != present:
        now, then = present, best["measurement"]
        out.line(
            f"now: {now['throughput']:.0f} requests/s, p99 {now['p99_seconds'] * 1000:.1f} ms with "
            f"{_clients(now['clients'])}; best: {then['throughput'] / now['throughput']:.2f} x the throughput, "
            f"{then['p99_seconds'] / now['p99_seconds']:.2f} x the p99"
        )
    if result.get("applied_revision"):
        out.line(f"applied in revision {result['applied_revision']}; follow it with `tritonctl wait {result['model']}`")
    elif best and not trials[best["trial"]].present:
        out.note("not applied; use `--apply` to create a new revision of the deployment with it")
    out.note(f"took {span(result['seconds'])} on {result['server']}")


class _Shown:
    """Shows the growing table: in place on a terminal, a line for each new row elsewhere."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._printed: set[tuple[Setting, int]] = set()
        self._live = Live(console=out.errors, transient=True, refresh_per_second=4) if _is_live(out) else None

    def __enter__(self) -> Any:
        if self._live is not None:
            self._live.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def _show(self, operation: Operation) -> None:
        progress = operation.progress
        seen = _trials((progress.details or {}).get("trials", ()))
        trials = [trial for trial in seen if trial.state is not TrialState.TIME]
        if self._live is not None:
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
            for column in _COLUMNS:
                table.add_column(column.upper())
            for row in list(_rows(trials, set(), (None, None)))[-30:]:
                table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
            share = "" if progress.fraction is None else f"  {progress.fraction:.0%}"
            table.caption = Text(f"{progress.message}{share}", style="dim")
            table.caption_justify = "left"
            self._live.update(table)
            return
        for trial in trials:
            if (trial.setting, trial.round) not in self._printed:
                self._printed.add((trial.setting, trial.round))
                self._out.note(f"  round {trial.round + 1}: {trial.setting}: {_summary(trial)}")


def _is_live(out: Output) -> bool:
    return out.errors.is_terminal and not out.json_wanted


def _trials(documents: Sequence[Mapping[str, Any]]) -> list[Trial]:
    return [Trial.model_validate(document) for document in documents]


def _rows(
    trials: Sequence[Trial], edge: set[tuple[int, int]], best: tuple[int | None, int | None]
) -> Iterator[tuple[object, ...]]:
    for number, trial in enumerate(trials):
        style = _STYLES[trial.state]
        first = True
        for measured in trial.measurements or (None,):
            clients = measured.clients if measured else None
            mark = ">" if best == (number, clients) else ""
            mark += "*" if (number, clients) in edge else ""
            mark += "=" if trial.present and first else ""
            cells: tuple[object, ...] = (mark, trial.setting if first else "", trial.round + 1 if first else "")
            if measured is None:
                cells += ("", "", "", "", "", "")
            else:
                cells += (
                    measured.clients,
                    f"{measured.throughput:.1f}" if measured.throughput < 100 else f"{measured.throughput:.0f}",
                    f"± {measured.spread:.0%}",
                    f"{measured.p50_seconds * 1000:.2f}",
                    f"{measured.p99_seconds * 1000:.2f}",
                    measured.answers,
                )
            memory = size(trial.memory_bytes) if trial.memory_bytes and first else ""
            cells += (memory, trial.state.value if first else "")
            yield tuple(Text(str(cell), style=style) for cell in cells)
            first = False


def _clients(count: int) -> str:
    return f"{count} client{'s' * (count > 1)}"


def _summary(trial: Trial) -> str:
    if not trial.measurements:
        return f"{trial.state.value}: {trial.message}"
    return "; ".join(
        f"{_clients(one.clients)} {one.throughput:.0f}/s p99 {one.p99_seconds * 1000:.1f} ms"
        for one in trial.measurements
    )
