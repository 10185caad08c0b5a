"""Progress of long tasks: bars on a terminal, one line per stage elsewhere, and nothing with ``-o json``."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from controlplane.cli.output import Output
from controlplane.client.errors import NotRunningError, OperationFailedError, WaitTimeoutError, named
from controlplane.client.http import Client
from controlplane.client.models import Operation
from controlplane.client.models import Progress as OperationProgress

_NO_STAGES = frozenset({"", "done"})
_QUEUED = "queue"
"""The stage of an operation that waits for a worker."""
_HEARTBEAT_SECONDS = 120.0
_FETCH_SECONDS = 60.0
_LATE_SECONDS = 0.5
"""Maximum time by which a wait may end after its deadline."""


class Bar:
    """One bar whose text, length and position change with the progress of the work."""

    def __init__(self, out: Output) -> None:
        self._quiet = out.json_wanted
        self._out = out
        self._live = out.errors.is_terminal and not out.json_wanted
        self._printed = set(_NO_STAGES)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            _BytesOnly(BarColumn(bar_width=30)),
            _BytesOnly(DownloadColumn(binary_units=True)),
            _BytesOnly(TransferSpeedColumn()),
            TimeElapsedColumn(),
            console=out.errors,
            transient=True,
            disable=not self._live,
        )
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def stage(self, text: str, *, total: int | None = None, done: int = 0) -> None:
        """Begin a stage; ``total`` is its number of bytes if it transfers bytes."""
        self._progress.reset(self._task, description=text, total=total, completed=done)
        self._print_once(text)

    def advance(self, count: int) -> None:
        """Count bytes of the present stage."""
        self._progress.advance(self._task, count)

    def show(self, progress: OperationProgress) -> None:
        """Show the progress of an operation."""
        text = progress.message or progress.stage
        if not text:
            return
        self._progress.update(
            self._task, description=text, total=progress.bytes_total, completed=progress.bytes_done or 0
        )
        if progress.stage != _QUEUED:
            self._print_once(text)

    def _print_once(self, text: str) -> None:
        """Without a terminal, print each stage once, and nothing that is not a stage."""
        if not self._live and text not in self._printed:
            self._printed.add(text)
            self._out.note(f"  {text}")


class _BytesOnly(ProgressColumn):
    """A column that is visible only while bytes are counted."""

    def __init__(self, inner: ProgressColumn) -> None:
        super().__init__()
        self._inner = inner

    def render(self, task: Task) -> object:  # type: ignore[override]
        return self._inner.render(task) if task.total else Text()


def follow(client: Client, operation: Operation, out: Output, *, timeout: float | None = None) -> Operation:
    """Show an operation's progress until it ends and return its last state.

    Raises:
        OperationFailedError: It failed or was cancelled; the message is the operation's own.
        WaitTimeoutError: It takes longer than ``timeout`` seconds; it continues to run.
    """
    with Bar(out) as bar:
        for state in states(client, operation, timeout):
            operation = state
            bar.show(state.progress)
    return ended(operation)


def ended(operation: Operation) -> Operation:
    """Return an operation that succeeded.

    Raises:
        OperationFailedError: It failed or was cancelled; the message is the operation's own.
    """
    if operation.state == "succeeded":
        return operation
    if operation.state == "cancelled":
        why = f": {operation.progress.message}" if operation.progress.message else ""
        raise OperationFailedError(f"the {operation.kind} of {operation.subject} was cancelled{why}", code="cancelled")
    if operation.error is None:
        raise OperationFailedError(f"the {operation.kind} operation {operation.id} ended as {operation.state}")
    code = operation.error.code
    failure = named(OperationFailedError, code)(operation.error.detail, code=code)
    failure.details = operation.error.details
    raise failure


def states(client: Client, operation: Operation, timeout: float | None) -> Iterator[Operation]:
    """Yield an operation's states as they change, up to its end.

    Raises:
        WaitTimeoutError: It takes longer than ``timeout`` seconds; it continues to run.
    """
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    path = f"/v1/operations/{operation.id}"
    broken = 0
    while not operation.finished:
        left = deadline - time.monotonic()
        if left <= 0:
            raise WaitTimeoutError(
                f"the {operation.kind} takes longer than {timeout:g} s; it continues as operation {operation.id}",
                operation=operation.id,
            )
        read_seconds = min(_HEARTBEAT_SECONDS, left)
        try:
            for name, document in client.events(f"{path}/events", read_seconds=read_seconds, heartbeats=True):
                broken = 0
                if name:
                    operation = client.read(Operation, document)
                    yield operation
                if deadline - time.monotonic() < read_seconds - _LATE_SECONDS:
                    break  # a read of this length would end too late
        except NotRunningError:
            # The stream was interrupted; the operation may still run.
            broken += 1
            if broken > 3:
                raise
            time.sleep(min(0.5 * broken, max(deadline - time.monotonic(), 0.0)))
        except WaitTimeoutError:
            if time.monotonic() < deadline - _LATE_SECONDS:
                raise  # not even a heartbeat arrived
        if not operation.finished:
            seconds = min(max(deadline - time.monotonic(), 1.0), _FETCH_SECONDS)
            operation = client.read(Operation, client.get(path, read_seconds=seconds))
            yield operation


@contextmanager
def waiting(out: Output, text: str) -> Iterator[Bar]:
    """Show that work of unknown length is in progress."""
    with Bar(out) as bar:
        bar.stage(text)
        yield bar
