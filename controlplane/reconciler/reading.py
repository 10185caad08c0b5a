"""Reads the deployments in threads, follows aliases, and hands over what is wanted."""

import asyncio
import logging
from collections.abc import Callable

from controlplane.domain.names import Reference
from controlplane.errors import ControlPlaneError
from controlplane.reconciler.wishes import Wish, Wishes

logger = logging.getLogger(__name__)

STORE = "store"
"""What is told where no deployment can be read."""


class Reader:
    """At most one read of a model, and one of all, at a time; what is asked for meanwhile is read once more after it.

    Belongs to one event loop.

    Args:
        wishes: What reads.
        hand_over: Called in the loop with what was read, and, for a read of all, the epoch in which it began.
        tell: Called in the loop with what cannot be read ("store", or a model) and why; with "" once it can again.
        may_follow: Whether this process may commit the move of an alias.
        epoch: Gives the lease's epoch.
    """

    def __init__(
        self,
        wishes: Wishes,
        *,
        hand_over: Callable[[dict[str, Wish], int | None], None],
        tell: Callable[[str, str], None],
        may_follow: Callable[[], bool],
        epoch: Callable[[], int],
    ) -> None:
        self._wishes = wishes
        self._hand_over = hand_over
        self._tell = tell
        self._unread: set[str] = set()
        self._may_follow = may_follow
        self._epoch = epoch
        self._running: dict[str | None, asyncio.Task[None]] = {}
        self._again: set[str | None] = set()
        self.trouble = ""
        """Why the store cannot be read; empty when it can."""
        self.complete = False
        """Whether all deployments were read once."""

    def read(self, model: str | None) -> None:
        """Begin to read one deployment, or all."""
        if model in self._running:
            self._again.add(model)
            return
        task = asyncio.create_task(self._run(model), name=f"read {model or 'deployments'}")
        self._running[model] = task

    async def stop(self) -> None:
        """Hand over nothing more."""
        tasks = list(self._running.values())
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
            wishes, unread = await asyncio.to_thread(self._read, model)
        except ControlPlaneError as error:
            self.trouble = str(error)
            self._note(model or STORE, self.trouble)
        except Exception:
            # The edge of a task that the loop depends on: the next read may succeed.
            logger.exception("reading %s failed by surprise", model or "the deployments")
        else:
            self.trouble = ""
            for name in (STORE, *wishes):
                self._note(name, "")
            for name, why in unread.items():
                self._note(name, why)
            self.complete = self.complete or model is None
            self._hand_over(wishes, epoch)

    def _note(self, subject: str, why: str) -> None:
        """Tell once that something cannot be read, and once that it can again."""
        if bool(why) is not (subject in self._unread):
            self._unread.symmetric_difference_update({subject})
            self._tell(subject, why)

    def _read(self, model: str | None) -> tuple[dict[str, Wish], dict[str, str]]:
        unread: dict[str, str] = {}
        if model is None:
            wishes, unread = self._wishes.read_all()
        else:
            wish = self._wishes.read(model)
            wishes = {} if wish is None else {model: wish}
        return {name: self._followed(wish) for name, wish in wishes.items()}, unread

    def _followed(self, wish: Wish) -> Wish:
        if Reference.parse(wish.revision.spec.reference).alias is None or not self._may_follow():
            return wish
        try:
            moved = self._wishes.follow_alias(wish)
            return (self._wishes.read(wish.model) or wish) if moved else wish
        except ControlPlaneError as error:
            logger.warning("the alias of %s cannot be followed now: %s", wish.model, error)
            return wish
