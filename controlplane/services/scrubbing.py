"""Runs the scrub in a thread of its own, and reports its state."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.conditions import Condition
from controlplane.domain.damage import Damage, ScrubRecord, intact_condition
from controlplane.errors import ControlPlaneError
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.registry import Registry
from controlplane.registry.scrub import Pace, Stopped
from controlplane.settings import ScrubSettings

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 10.0
"""Interval at which an idle thread checks whether there is work; the check makes no request."""


class ScrubView(BaseModel):
    """The state of the scrub."""

    model_config = ConfigDict(frozen=True)

    enabled: bool = Field(description="Whether the leader scrubs.")
    running: bool = Field(description="Whether a pass is in progress.")
    record: ScrubRecord = Field(description="Position, last complete pass, and damaged or missing blobs.")


class Scrubbing:
    """Scrubs while this instance leads; every instance repairs damaged blobs that its cache contains."""

    def __init__(self, registry: Registry, reconciler: Reconciler, settings: ScrubSettings) -> None:
        self._registry = registry
        self._reconciler = reconciler
        self._settings = settings
        self._stop = threading.Event()
        self._pace = Pace(settings.requests_per_minute, settings.bytes_per_second, self._stop)
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        """Start, and report findings in events."""
        loop = asyncio.get_running_loop()
        self._registry.damages.on_notice = lambda reason, damage: self._notice(loop, reason, damage)
        self._thread = threading.Thread(target=self._run, name="scrub", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Commit the position and stop."""
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    @property
    def read_bytes(self) -> int:
        """Return how many bytes this process has read in scrubs."""
        return self._pace.bytes

    @property
    def requests(self) -> int:
        """Return how many requests this process has made in scrubs."""
        return self._pace.requests

    def view(self) -> ScrubView:
        """Return the state of the scrub, as this instance last read it. No I/O."""
        record = self._registry.damages.record
        return ScrubView(enabled=self._settings.enabled, running=record.running, record=record)

    def condition(self, model: str, number: int) -> Condition:
        """Return the condition ``Intact`` of a version. No I/O."""
        return intact_condition(self._registry.damages.of(f"{model}:{number}"))

    def _notice(self, loop: asyncio.AbstractEventLoop, reason: str, damage: Damage) -> None:
        repaired = reason == "BlobRepaired"
        message = f"{damage.path} (blob {damage.sha256}) is intact again" if repaired else damage.message
        subjects = sorted({version.rpartition(":")[0] for version in damage.versions}) or ["store"]

        def tell() -> None:
            for subject in subjects:
                self._reconciler.record_event("Normal" if repaired else "Warning", reason, subject, message)

        if not loop.is_closed():
            loop.call_soon_threadsafe(tell)

    def _run(self) -> None:
        refresh_at = 0.0
        begin_at = time.monotonic() + self._settings.delay_seconds
        led = False
        while not self._stop.is_set():
            try:
                leads = self._reconciler.leading
                if time.monotonic() >= refresh_at or (leads and not led):
                    refresh_at = time.monotonic() + self._settings.refresh_seconds
                    self._attempt(self._refresh)
                led = leads
                scrubs = self._settings.enabled and leads and time.monotonic() >= begin_at
                if not (scrubs and self._attempt(self._step)):
                    self._stop.wait(min(_IDLE_SECONDS, self._settings.refresh_seconds))
            except Stopped:
                break
        if led:
            self._attempt(self._save)

    def _refresh(self) -> bool:
        self._registry.damages.refresh()
        self._registry.scrub.repair_known()
        return True

    def _step(self) -> bool:
        return self._registry.scrub.step(self._pace, self._settings.interval_seconds)

    def _save(self) -> bool:
        self._registry.scrub.save()
        return True

    def _attempt(self, work: Callable[[], bool]) -> bool:
        """Do one piece of work, and return False if it could not be done now."""
        try:
            return work()
        except Stopped:
            raise
        except (ControlPlaneError, OSError) as error:
            logger.warning("the scrub is paused because the store or the disk failed: %s", error)
            return False
        except Exception:  # an unexpected error ends one step, not the scrub
            logger.exception("unexpected error in the scrub")
            return False
