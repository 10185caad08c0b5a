"""The cordons of servers in the bucket: one chain for all, so that a drain survives restarts and changes of the leader.

A server's name is checked by the caller: the bucket does not know the servers.
"""

from collections.abc import Callable
from datetime import UTC, datetime

from controlplane.domain.cordons import Cordon, Cordons
from controlplane.registry.changes import ChangeFeed, ChangeLog
from controlplane.registry.head_memory import HeadMemory
from controlplane.registry.single import SingleChain
from controlplane.storage.base import ObjectStore

NAME = "cordons"
PREFIX = f"{NAME}/revisions/"


class CordonStore:
    """Reads, sets and removes cordons. Blocks; safe to use from several threads."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        changes: ChangeLog | None = None,
        feed: ChangeFeed | None = None,
        memory: HeadMemory | None = None,
    ) -> None:
        self._clock = clock
        self._chain = SingleChain(store, NAME, Cordons, changes=changes, feed=feed, memory=memory)

    def read(self, *, max_age_seconds: float = 0.0) -> tuple[int, Cordons]:
        """Return the number of the newest revision (0 if there is none) and the cordons (see `SingleChain.read`)."""
        return self._chain.read(max_age_seconds=max_age_seconds)

    def set(self, server: str, *, drain: bool, force: bool, reason: str, actor: str) -> tuple[int, Cordons]:
        """Set or replace the cordon of a server; the same one again commits nothing.

        Returns:
            The number of the newest revision, and all cordons.

        Raises:
            ConflictError: There are too many.
        """

        def change(found: Cordons) -> tuple[Cordons, str] | None:
            present = found.of(server)
            if present is not None and (present.drain, present.force, present.reason) == (drain, force, reason):
                return None
            made = Cordon(server=server, drain=drain, force=force, reason=reason, at=self._clock(), by=actor)
            what = f"{'drain' if drain else 'cordon'} server {server}{' with force' if force else ''}"
            return found.with_(made), f"{what}: {reason}" if reason else what

        return self._chain.edit(change, actor=actor)

    def clear(self, server: str, *, actor: str) -> tuple[int, Cordons]:
        """Remove the cordon of a server.

        Returns:
            The number of the newest revision, and all cordons.

        Raises:
            NotFoundError: The server is not cordoned.
        """
        return self._chain.edit(lambda found: (found.without(server), f"uncordon server {server}"), actor=actor)
