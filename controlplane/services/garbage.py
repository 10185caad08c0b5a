"""Removal of unreferenced blobs, abandoned uploads, and old records of operations and idempotency keys."""

import asyncio
from datetime import timedelta
from typing import Any

from controlplane.registry.registry import Registry
from controlplane.services import idempotency, operations
from controlplane.services.operations import Operation, Operations, Reporter
from controlplane.services.uploads.service import INCOMING, Uploads
from controlplane.settings import GcSettings

OPERATION_RECORD_DAYS = 30
IDEMPOTENCY_RECORD_DAYS = 2


class Garbage:
    """Collects garbage."""

    def __init__(self, registry: Registry, uploads: Uploads, running: Operations, settings: GcSettings) -> None:
        self._registry = registry
        self._uploads = uploads
        self._operations = running
        self._settings = settings

    def start(self, *, dry_run: bool, grace_seconds: float | None, actor: str) -> Operation:
        """Start a collection.

        Args:
            dry_run: Only count.
            grace_seconds: Minimum age of removed files; None uses the settings.
            actor: The caller's name.
        """

        async def work(reporter: Reporter) -> dict[str, Any]:
            reporter.stage("collect", "searching for unreferenced objects")
            return await asyncio.to_thread(self._collect, dry_run, grace_seconds)

        return self._operations.start("gc", work, actor=actor, subject="dry run" if dry_run else "")

    def _collect(self, dry_run: bool, grace_seconds: float | None) -> dict[str, Any]:
        report = self._registry.collect(dry_run=dry_run, grace_seconds=grace_seconds)
        # Objects of direct uploads whose completion was interrupted between two requests.
        self._remove_old(INCOMING, self._settings.upload_max_age_seconds / 86_400, dry_run)
        return {
            **report.model_dump(mode="json"),
            "uploads_dropped": self._uploads.collect(self._settings.upload_max_age_seconds, dry_run=dry_run),
            "records_removed": self._remove_old(operations.PREFIX, OPERATION_RECORD_DAYS, dry_run)
            + self._remove_old(idempotency.PREFIX, IDEMPOTENCY_RECORD_DAYS, dry_run),
        }

    def _remove_old(self, prefix: str, days: float, dry_run: bool) -> int:
        store = self._registry.store
        horizon = self._registry.clock.now() - timedelta(days=days)
        old = [info.key for info in store.list(prefix) if info.modified_at < horizon]
        if not dry_run:
            for key in old:
                store.delete(key)
        return len(old)
