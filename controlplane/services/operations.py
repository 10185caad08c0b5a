"""Operations: work that takes longer than a request, with its progress, its result and its error.

A running operation exists in this process's memory. Its final state is written to the bucket, so that every instance
can report it afterwards, also after a restart. Its start is recorded in a file in this instance's data folder: the next
start finds there what a killed process was running, and records it as lost. Identifiers count down over time, so one
LIST of the bucket returns the newest first.
"""

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from controlplane.errors import ConflictError, ControlPlaneError, NotFoundError, ObjectExistsError, ObjectNotFoundError
from controlplane.services.error_info import ErrorInfo, error_info
from controlplane.services.journal import Journal
from controlplane.storage.base import ObjectStore

logger = logging.getLogger(__name__)

PREFIX = "operations/"
_FINISHED_KEPT = 512
_RUNNING_MAX = 256
_LOST = ErrorInfo(
    code="operation-lost",
    title="Operation lost",
    detail="the instance that ran the operation stopped before it could record the end; no "
    "partial result exists, so if the result is missing, start it again",
)
_CLOCK_TOP_MILLISECONDS = 1 << 44  # the year 2527


class OperationState(StrEnum):
    """The state of an operation."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        """Return whether the state is final."""
        return self in {OperationState.SUCCEEDED, OperationState.FAILED, OperationState.CANCELLED}


class Progress(BaseModel):
    """The progress of an operation."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    stage: str = Field(default="", description="The stage, as one word.", examples=["upload"])
    message: str = Field(default="", description="One sentence, for people.")
    fraction: float | None = Field(default=None, ge=0, le=1, description="Fraction completed, 0 to 1; null if unknown.")
    bytes_done: int | None = Field(default=None, description="Bytes transferred in this stage, if it transfers any.")
    bytes_total: int | None = Field(default=None, description="Bytes to transfer in this stage.")
    details: dict[str, JsonValue] | None = Field(
        default=None, description="Machine-readable details so far; the fields depend on the kind."
    )


class Operation(BaseModel):
    """The present state of one operation."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(description="Its identifier.", examples=["10cc1a83e2f4b0d1c2a"])
    kind: str = Field(description="publish, convert, validate, deploy, tune or gc.", examples=["publish"])
    subject: str = Field(default="", description="Subject: a model, a reference, an upload.")
    state: OperationState = Field(description="pending, running, succeeded, failed or cancelled.")
    actor: str = Field(description="Who started it.")
    created_at: datetime = Field(description="When it was started (UTC).")
    updated_at: datetime = Field(description="When it last changed (UTC).")
    progress: Progress = Field(default_factory=Progress, description="Progress.")
    result: dict[str, JsonValue] | None = Field(default=None, description="Result, once it succeeded.")
    error: ErrorInfo | None = Field(default=None, description="Why it failed, if it did.")
    log: str = Field(default="", description="End of the log, if there is one.")


class Reporter:
    """Receives the progress of a running operation; may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, update: Callable[[Progress | None, str | None], None]) -> None:
        self._loop = loop
        self._update = update
        self._stage = Progress()
        self._bytes_reported_at = 0.0

    def stage(
        self,
        stage: str,
        message: str = "",
        *,
        fraction: float | None = None,
        total: int | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        """Begin a stage, or add details to the present one.

        Args:
            stage: One word.
            message: One sentence.
            fraction: Share done, from 0 to 1.
            total: Bytes that the stage will transfer, if `moved` is going to be called.
            details: Details that can be serialised as JSON, for programs.
        """
        self._stage = Progress(
            stage=stage,
            message=message,
            fraction=fraction if total is None else 0.0,
            bytes_done=None if total is None else 0,
            bytes_total=total,
            details=details,
        )
        self._tell(self._stage, None)

    def moved(self, count: int) -> None:
        """Count bytes of the present stage."""
        done = (self._stage.bytes_done or 0) + count
        total = self._stage.bytes_total
        self._stage = self._stage.model_copy(
            update={"bytes_done": done, "fraction": min(1.0, done / total) if total else None}
        )
        now = time.monotonic()
        if now - self._bytes_reported_at >= 0.1 or done == total:  # avoid thousands of callbacks, one for each part
            self._bytes_reported_at = now
            self._tell(self._stage, None)

    def log(self, text: str) -> None:
        """Store the end of a log with the operation."""
        self._tell(None, text[-16_384:])

    def _tell(self, progress: Progress | None, log: str | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._update, progress, log)


Work = Callable[[Reporter], Awaitable[dict[str, Any]]]


class _Live:
    """An operation in memory: its newest state, and a way to wait for the next one."""

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def update(self, **changes: Any) -> None:
        self.become(self.operation.model_copy(update={"updated_at": datetime.now(UTC), **changes}))

    def become(self, operation: Operation) -> None:
        self.operation = operation
        self.changed.set()
        self.changed = asyncio.Event()

    def report(self, progress: Progress | None, log: str | None) -> None:
        if self.operation.state.finished:
            return
        if progress is not None:
            self.update(progress=progress)
        if log is not None:
            self.update(log=log)


class Operations:
    """Starts operations and reports their state. Belongs to one event loop."""

    def __init__(self, store: ObjectStore, journal: Journal) -> None:
        self._store = store
        self._journal = journal
        self._live: OrderedDict[str, _Live] = OrderedDict()
        self.finished_total: dict[tuple[str, str], int] = {}

    async def recover(self) -> None:
        """Record the operations of an earlier process as lost, and write the final states that it could not write."""
        for document in await asyncio.to_thread(lambda: list(self._journal.left())):
            try:
                operation = Operation.model_validate_json(document)
            except ValidationError:
                logger.warning("failed to read an operation's file: %.80s", document)
                continue
            live = self._live[operation.id] = _Live(operation)
            if not operation.state.finished:
                live.update(state=OperationState.FAILED, error=_LOST)
                logger.warning("operation %s (%s) was lost with the process that ran it", operation.id, operation.kind)
            await self._write(live.operation)

    def start(self, kind: str, work: Work, *, actor: str, subject: str = "") -> Operation:
        """Start ``work`` and return immediately.

        Raises:
            ConflictError: Too many operations are running already.
        """
        if self.running >= _RUNNING_MAX:
            raise ConflictError(
                f"the limit of {_RUNNING_MAX} running operations is reached; wait until some end", limit=_RUNNING_MAX
            )
        now = datetime.now(UTC)
        operation = Operation(
            id=new_id(),
            kind=kind,
            subject=subject,
            state=OperationState.PENDING,
            actor=actor,
            created_at=now,
            updated_at=now,
        )
        live = self._live[operation.id] = _Live(operation)
        self._journal.put(operation.id, operation.model_dump_json())  # before any client learns its identifier
        self._forget_oldest()
        live.task = asyncio.create_task(self._run(live, work), name=f"operation {operation.id}")
        return operation

    @property
    def running(self) -> int:
        """Return the number of operations that have not ended."""
        return sum(not live.operation.state.finished for live in self._live.values())

    async def get(self, operation_id: str) -> Operation:
        """Return the present state of an operation.

        Raises:
            NotFoundError: It does not exist, runs in another instance, or was run by an instance that was killed and
                has not restarted.
        """
        if live := self._live.get(operation_id):
            return live.operation
        if not is_id(operation_id):
            raise NotFoundError(f"operation {operation_id[:80]!r} does not exist", operation=operation_id[:80])
        try:
            data = await asyncio.to_thread(self._store.get, _key(operation_id))
        except ObjectNotFoundError as error:
            raise NotFoundError(
                f"unknown operation {operation_id!r}: it may belong to another instance or have been "
                "lost in a restart; start it again",
                operation=operation_id,
            ) from error
        return Operation.model_validate_json(data)

    async def wait(self, operation_id: str, seconds: float) -> Operation:
        """Return an operation once it has ended, or its state after ``seconds``."""
        deadline = time.monotonic() + seconds
        while True:
            live = self._live.get(operation_id)
            if live is None:
                return await self.get(operation_id)
            left = deadline - time.monotonic()
            if live.operation.state.finished or left <= 0:
                return live.operation
            try:
                await asyncio.wait_for(live.changed.wait(), left)
            except TimeoutError:
                return live.operation

    async def follow(self, operation_id: str, *, heartbeat_seconds: float) -> AsyncIterator[Operation | None]:
        """Yield the operation's states as they change, and None per silent ``heartbeat_seconds``, up to its end."""
        live = self._live.get(operation_id)
        if live is None:
            yield await self.get(operation_id)
            return
        while True:
            operation, changed = live.operation, live.changed
            yield operation
            if operation.state.finished:
                return
            while live.operation is operation:
                try:
                    await asyncio.wait_for(changed.wait(), heartbeat_seconds)
                except TimeoutError:
                    yield None

    async def page(self, *, after: str = "", limit: int = 100) -> list[Operation]:
        """Return operations, newest first: those that run here and those that ended on any instance."""
        infos = await asyncio.to_thread(
            lambda: list(self._store.list(PREFIX, start_after=_key(after) if after else "", limit=limit))
        )
        stored = {info.key.removeprefix(PREFIX).removesuffix(".json") for info in infos}
        ids = sorted(stored | {name for name in self._live if name > after})[:limit]
        return [await self.get(name) for name in ids]

    async def cancel(self, operation_id: str) -> Operation:
        """Cancel an operation that runs here; one that has ended is unchanged."""
        live = self._live.get(operation_id)
        if live is None:
            return await self.get(operation_id)
        if live.task is not None and not live.operation.state.finished:
            live.task.cancel()
            await asyncio.wait([live.task])
        return live.operation

    async def stop(self) -> None:
        """Cancel the running operations and record that."""
        tasks = [live.task for live in self._live.values() if live.task is not None and not live.task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, live: _Live, work: Work) -> None:
        reporter = Reporter(asyncio.get_running_loop(), live.report)
        end: dict[str, Any]
        try:
            live.update(state=OperationState.RUNNING)
            result = await work(reporter)
            await asyncio.sleep(0)  # progress reported from threads arrives before the end does
            done = live.operation.progress.model_copy(update={"stage": "done", "message": "", "fraction": 1.0})
            end = {"state": OperationState.SUCCEEDED, "result": result, "progress": done}
        except asyncio.CancelledError:
            end = {"state": OperationState.CANCELLED}
        except ControlPlaneError as error:
            end = {"state": OperationState.FAILED, "error": error_info(error)}
        except Exception as error:
            logger.exception("operation %s (%s) failed", live.operation.id, live.operation.kind)
            end = {"state": OperationState.FAILED, "error": error_info(error)}
        operation = live.operation.model_copy(update={"updated_at": datetime.now(UTC), **end})
        self._journal.put(operation.id, operation.model_dump_json())  # a final state that was seen is never lost
        live.become(operation)
        counted = (operation.kind, operation.state.value)
        self.finished_total[counted] = self.finished_total.get(counted, 0) + 1
        if operation.error is not None:
            logger.warning("operation %s (%s) failed: %s", operation.id, operation.kind, operation.error.detail)
        await self._write(operation)

    async def _write(self, operation: Operation) -> None:
        try:
            await asyncio.to_thread(self._write_now, operation)
        except ControlPlaneError as error:
            # The work is done and committed; its record is written to the bucket at the next start.
            logger.warning("failed to record the end of operation %s: %s", operation.id, error.message)

    def _write_now(self, operation: Operation) -> None:
        try:
            self._store.create(_key(operation.id), operation.model_dump_json(indent=1).encode())
        except ObjectExistsError:
            logger.debug("operation %s is already recorded", operation.id)
        except ControlPlaneError:
            self._journal.put(operation.id, operation.model_dump_json())
            raise
        self._journal.remove(operation.id)

    def _forget_oldest(self) -> None:
        finished = [name for name, live in self._live.items() if live.operation.state.finished]
        for name in finished[: max(0, len(finished) - _FINISHED_KEPT)]:
            del self._live[name]


def new_id() -> str:
    """Return a new identifier; later identifiers sort before earlier ones."""
    return f"{_CLOCK_TOP_MILLISECONDS - time.time_ns() // 1_000_000:011x}{secrets.token_hex(4)}"


def is_id(text: str) -> bool:
    """Return whether the text has the form of an identifier from `new_id`."""
    return len(text) == 19 and all(character in "0123456789abcdef" for character in text)


def _key(operation_id: str) -> str:
    return f"{PREFIX}{operation_id}.json"
