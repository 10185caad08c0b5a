"""Reads the deployments in threads, follows aliases, and hands over the desired state.

A read of all deployments reads only those that changed since the last one (`controlplane.reconciler.desired_changes`),
so without changes it is one request. A slow pass over all heads, one page at a time, finds changes that the change feed
missed.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from controlplane.domain.names import Reference
from controlplane.errors import ControlPlaneError
from controlplane.lifecycle.desired import DesiredDeployment, DesiredStateResolver
from controlplane.reconciler.desired_changes import DesiredChanges
from controlplane.registry.registry import Registry

logger = logging.getLogger(__name__)

STORE = "store"
"""The subject that is reported if no deployment can be read."""
SWEEP_SECONDS = 300.0
"""Time from the start of one pass over all heads to the start of the next."""
_PAGE_SECONDS = 5.0
"""Pause between two pages of a pass: more models make a pass longer, not its cost per minute higher."""


class DesiredStateReader:
    """Runs at most one read per model and one of all at a time; a request during a read causes one more read after it.

    Belongs to one event loop.

    Args:
        registry: The bucket.
        desired_state: Reads one deployment.
        hand_over: Called in the loop with the result and, for a read of all, the epoch in which it began.
        tell: Called in the loop with an unreadable subject ("store", or a model) and the reason; with "" on recovery.
        may_follow: Whether this process may commit the move of an alias.
        epoch: Gives the lease's epoch.
    """

    def __init__(
        self,
        registry: Registry,
        desired_state: DesiredStateResolver,
        *,
        hand_over: Callable[[dict[str, DesiredDeployment], int | None], None],
        tell: Callable[[str, str], None],
        may_follow: Callable[[], bool],
        epoch: Callable[[], int],
    ) -> None:
        self._registry = registry
        self._desired_state = desired_state
        self._changes = DesiredChanges(registry, desired_state, follow=self._followed)
        self._followed_all = False
        self._sweeping: asyncio.Task[None] | None = None
        self._swept_at = 0.0
        self._hand_over = hand_over
        self._tell = tell
        self._unread: set[str] = set()
        self._may_follow = may_follow
        self._epoch = epoch
        self._running: dict[str | None, asyncio.Task[None]] = {}
        self._again: set[str | None] = set()
        self.trouble = ""
        """Why the store cannot be read; empty if it can."""
        self.complete = False
        """Whether all deployments were read once."""

    def read(self, model: str | None) -> None:
        """Start to read one deployment, or all."""
        if model in self._running:
            self._again.add(model)
            return
        task = asyncio.create_task(self._run(model), name=f"read {model or 'deployments'}")
        self._running[model] = task
        due = self.complete and time.monotonic() - self._swept_at >= SWEEP_SECONDS
        if due and (self._sweeping is None or self._sweeping.done()):
            self._swept_at = time.monotonic()
            self._sweeping = asyncio.create_task(self._sweep(), name="sweep")

    async def stop(self) -> None:
        """Stop all reads."""
        tasks = [*self._running.values(), *([] if self._sweeping is None else [self._sweeping])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, model: str | None) -> None:
        again = True
        try:
            while again:
                self._again.discard(model)
                await self._once(model)
                again = model in self._again
        finally:
            self._running.pop(model, None)

    async def _once(self, model: str | None) -> None:
        epoch = self._epoch() if model is None else None
        try:
            desired_state, unread = await asyncio.to_thread(self._read, model, asyncio.get_running_loop())
        except ControlPlaneError as error:
            self.trouble = str(error)
            self._note(model or STORE, self.trouble)
        except Exception:
            # Boundary of a task that the loop depends on: the next read may succeed.
            logger.exception("unexpected error reading %s", model or "the deployments")
        else:
            self.trouble = ""
            for name in (STORE, *desired_state):
                self._note(name, "")
            for name, why in unread.items():
                self._note(name, why)
            if model is None and not self.complete:
                self.complete, self._swept_at = True, time.monotonic()
            self._hand_over(desired_state, epoch)

    def _note(self, subject: str, why: str) -> None:
        """Report once that a subject is unreadable, and once that it is readable again."""
        if bool(why) is not (subject in self._unread):
            self._unread.symmetric_difference_update({subject})
            self._tell(subject, why)

    async def _sweep(self) -> None:
        """Compare the heads of all chains; the next read reads those that changed."""
        sweeps = (self._registry.model_sweep, self._registry.deployments.sweep)
        try:
            for sweep in sweeps:
                while await asyncio.to_thread(sweep.step):  # noqa: ASYNC110 - a pace, and nothing to wait for
                    await asyncio.sleep(_PAGE_SECONDS)
                await asyncio.sleep(_PAGE_SECONDS)
            if self._may_follow():
                await asyncio.to_thread(self._registry.changes.collect)
        except ControlPlaneError as error:
            logger.debug("failed to compare the heads of all chains: %s", error)
        except Exception:
            # Boundary of a task that the loop depends on: the next pass may succeed.
            logger.exception("unexpected error comparing the heads of all chains")

    def _read(
        self, model: str | None, loop: asyncio.AbstractEventLoop
    ) -> tuple[dict[str, DesiredDeployment], dict[str, str]]:
        if model is not None:
            desired_deployment = self._desired_state.read(model)
            return ({} if desired_deployment is None else {model: self._followed(desired_deployment)}), {}
        leads = self._may_follow()

        def ready(desired_state: dict[str, DesiredDeployment]) -> None:
            loop.call_soon_threadsafe(self._hand_over, desired_state, None)

        found = self._changes.read(aliased=leads and not self._followed_all, ready=ready)
        self._followed_all = leads
        return found

    def _followed(self, desired_deployment: DesiredDeployment) -> DesiredDeployment:
        if Reference.parse(desired_deployment.revision.spec.reference).alias is None or not self._may_follow():
            return desired_deployment
        try:
            moved = self._desired_state.follow_alias(desired_deployment)
            return (
                (self._desired_state.read(desired_deployment.model) or desired_deployment)
                if moved
                else desired_deployment
            )
        except ControlPlaneError as error:
            logger.warning("failed to follow the alias of %s: %s", desired_deployment.model, error)
            self._changes.read_again(desired_deployment.model)
            return desired_deployment
