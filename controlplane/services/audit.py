"""The audit log for the API: pages, and a stream of all pages."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime

from controlplane.domain.access import Principal
from controlplane.errors import InvalidInputError
from controlplane.registry.audit_log import AuditEntry, AuditLog
from controlplane.storage.base import ObjectStore

_STREAMED_AT_ONCE = 500


class AuditTrail:
    """Returns the commits that a caller may see."""

    def __init__(self, store: ObjectStore) -> None:
        self._log = AuditLog(store)

    async def page(
        self,
        asker: Principal | None,
        *,
        since: datetime,
        until: datetime | None,
        model: str | None,
        after: str,
        limit: int,
    ) -> tuple[list[AuditEntry], str]:
        """Return a page, and the position at which the next one begins; empty if there is none.

        Raises:
            InvalidInputError: The position is invalid.
            ForbiddenError: The caller may not see the model.
        """
        if asker is not None and model is not None:
            asker.require_model(model)
        position = None
        if after:
            at, _, key = after.partition(" ")
            try:
                position = (datetime.fromisoformat(at), key)
            except ValueError as error:
                raise InvalidInputError("the cursor is not one of this list") from error
        entries, following = await asyncio.to_thread(
            self._log.page, since=since, until=until, model=model, after=position, limit=limit
        )
        seen = [entry for entry in entries if asker is None or _may_see(asker, entry)]
        return seen, f"{following[0].isoformat()} {following[1]}" if following else ""

    async def stream(
        self, asker: Principal | None, *, since: datetime, until: datetime | None, model: str | None
    ) -> AsyncIterator[AuditEntry]:
        """Yield all commits, oldest first, reading one page at a time."""
        after = ""
        while True:
            entries, after = await self.page(
                asker, since=since, until=until, model=model, after=after, limit=_STREAMED_AT_ONCE
            )
            for entry in entries:
                yield entry
            if not after:
                return


def _may_see(asker: Principal, entry: AuditEntry) -> bool:
    return asker.sees(entry.name) if entry.name else not asker.models
