"""Check and repair of the store: `tritonctl fsck`."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from controlplane.registry.fsck import chain_named
from controlplane.registry.registry import Registry
from controlplane.services.operations import Operation, Operations, Reporter


class Checking:
    """Checks the store and commits the operator's decisions about chains that lost revisions."""

    def __init__(self, registry: Registry, running: Operations) -> None:
        self._registry = registry
        self._operations = running

    def start(
        self,
        *,
        deep: bool,
        repair: bool,
        accept: Sequence[str],
        restore: Sequence[str],
        reason: str,
        actor: str,
    ) -> Operation:
        """Start a check; decisions are committed before it.

        Args:
            deep: Read the content of every blob.
            repair: Repair everything that can be repaired without data loss.
            accept: Chains whose present state in the store is accepted.
            restore: Chains whose newest lost revision is restored.
            reason: Reason for the history.
            actor: The caller's name.

        Raises:
            InvalidInputError: A name does not name a chain.
            ConflictError: Too many operations are running already.
        """
        for name in (*accept, *restore):
            chain_named(self._registry.store, name)

        async def work(reporter: Reporter) -> dict[str, Any]:
            return await asyncio.to_thread(
                check_store,
                self._registry,
                deep=deep,
                repair=repair,
                accept=accept,
                restore=restore,
                reason=reason,
                actor=actor,
                stage=lambda message: reporter.stage("check", message),
            )

        return self._operations.start("fsck", work, actor=actor, subject=", ".join((*accept, *restore))[:200])


def check_store(
    registry: Registry,
    *,
    deep: bool,
    repair: bool,
    accept: Sequence[str],
    restore: Sequence[str],
    reason: str,
    actor: str,
    stage: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Commit decisions, check the store, and return the report as JSON. Blocks.

    Raises:
        ConflictError: There is nothing to decide about a chain.
        StoreError: The store failed.
    """
    decided = []
    for names, restores in ((restore, True), (accept, False)):
        for name in names:
            revision = registry.decide(name, restore=restores, actor=actor, reason=reason)
            decided.append(f"{name}: revision {revision.number} ({revision.reason})")
    report = registry.fsck(deep=deep, repair=repair, decided=decided, stage=stage)
    return report.model_dump(mode="json")
