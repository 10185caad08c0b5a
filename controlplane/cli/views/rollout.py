"""Output of a rollout: step and weight, both versions side by side, and test results; once or live."""

import time
from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from controlplane.cli.output import Output, ago, span
from controlplane.client.errors import ClientError, NotRunningError, WaitTimeoutError
from controlplane.client.rollouts import Arm, Rollout

_STYLES = {"promoted": "green", "aborted": "red", "paused": "yellow"}
_LARGEST_ODDS = 1e6


def screen(rollout: Rollout, *, trouble: str = "") -> RenderableType:
    """Draw the rollout once."""
    how = {
        "canary": f"step {rollout.step} of {rollout.steps}, {rollout.weight * 100:g} % of the requests",
        "shadow": "copies of requests",
        "manual": "requests that name the version",
    }[rollout.strategy]
    head = Text.assemble(
        (f"{rollout.model} ", "bold"),
        f"{rollout.old.version} -> {rollout.new.version}  {rollout.strategy}  ",
        (rollout.phase, _STYLES.get(rollout.phase, "")),
        "" if rollout.ended else f"  {how}",
        f"  started {ago(rollout.began_at)}",
    )
    lines: list[RenderableType] = [head, Text(rollout.message)]
    if trouble:
        lines.append(Text(trouble, style="yellow"))
    versions = _table("version", "requests", "failed", "share", "p50", "p99")
    for name, arm in (("old", rollout.old), ("new", rollout.new)):
        versions.add_row(f"{name} {arm.version}", *_figures(arm))
    tests = _table("compared", "odds that it is worse", "withdrawn at", "verdict")
    for test in rollout.tests:
        verdict = Text("worse", style="red") if test.worse else Text("not worse so far")
        tests.add_row(test.signal, _odds(test.odds), _odds(test.needed_odds), verdict)
    if rollout.compared:
        lines.append(Text(f"{rollout.differing} of {rollout.compared} compared answers differ"))
    if rollout.refused or rollout.skipped:
        lines.append(
            Text(
                f"{rollout.refused} requests were sent to the old version instead, "
                f"{rollout.skipped} replicas were skipped"
            )
        )
    return Group(*lines, Text(), versions, Text(), tests)


def watch(
    read: Callable[[], Rollout],
    out: Output,
    *,
    interval: float,
    until: Callable[[Rollout], bool] = lambda rollout: rollout.ended,
    timeout: float | None = None,
) -> Rollout:
    """Show a rollout until it ends, and return its final state. Without a terminal, each change is a line.

    Args:
        read: Reads the rollout again.
        out: The output.
        interval: Seconds between two reads.
        until: Returns whether to end the watch.
        timeout: Seconds after which the watch ends; None: never.

    Raises:
        WaitTimeoutError: The rollout takes longer than ``timeout``; it continues.
    """
    deadline = None if timeout is None else time.monotonic() + timeout

    def pause(rollout: Rollout) -> None:
        if deadline is not None and time.monotonic() >= deadline:
            raise WaitTimeoutError(
                f"the rollout of {rollout.model}:{rollout.new.version} is {rollout.phase} after {timeout:g} s; "
                f"it continues: {rollout.message}",
                model=rollout.model,
            )
        time.sleep(interval if deadline is None else max(0.0, min(interval, deadline - time.monotonic())))

    rollout, trouble = read(), ""
    if out.json_wanted or not out.errors.is_terminal:
        printed: tuple[object, ...] = ()
        while True:
            state = (rollout.phase, rollout.step, rollout.ready)  # without the message, which counts seconds
            if state != printed and not out.json_wanted:
                out.note(f"{rollout.phase}: {rollout.message}", style="")
                printed = state
            if until(rollout):
                return rollout
            pause(rollout)
            rollout = read()
    with Live(console=out.errors, auto_refresh=False, transient=True) as view:
        while not until(rollout):
            view.update(screen(rollout, trouble=trouble), refresh=True)
            pause(rollout)
            try:
                rollout, trouble = read(), ""
            except (NotRunningError, WaitTimeoutError, ClientError) as error:
                trouble = f"last known state: {error.message}"  # a restart of the control plane does not end a rollout
    return rollout


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column.upper(), no_wrap=True)
    return table


def _figures(arm: Arm) -> tuple[str, ...]:
    share = f"{arm.failures / arm.requests:.2%}" if arm.requests else "-"
    times = ("-" if seconds is None else span(seconds) for seconds in (arm.p50_seconds, arm.p99_seconds))
    return (str(arm.requests), str(arm.failures), share, *times)


def _odds(odds: float) -> str:
    return f"over {_LARGEST_ODDS:.0e} : 1" if odds > _LARGEST_ODDS else f"{odds:.3g} : 1"
