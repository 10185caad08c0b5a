"""Placement operations that a user can start: defragmentation."""

from controlplane.errors import ConflictError
from controlplane.placement.views import DefragmentationView
from controlplane.reconciler.controller import Reconciler


class Placement:
    """Use cases for placement. Used from one event loop."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler

    def defragment(self, *, dry_run: bool, limit: int) -> DefragmentationView:
        """Return the moves that are worth their cost, and start them unless this is a dry run.

        Raises:
            ConflictError: This instance is not the leader, so it cannot move anything.
        """
        if not dry_run and not self._reconciler.leading:
            raise ConflictError(
                f"this instance only follows ({self._reconciler.cycle_report.partition(';')[0]}); ask the one that "
                "leads, or make it a dry run"
            )
        return self._reconciler.defragment(dry_run=dry_run, limit=limit)
