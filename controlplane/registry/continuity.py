"""Check whether a chain still contains the revision that a reader knows."""

from collections.abc import Callable
from contextlib import suppress

from controlplane.errors import DamagedRevisionError, ObjectNotFoundError
from controlplane.registry.revision import Revision


def continues(known: Revision, head: Revision | None, read: Callable[[int], Revision], *, pruned: bool = False) -> bool:
    """Return whether ``head`` is ``known``, was committed after it, or results from an operator's decision since.

    Args:
        known: The newest revision that the reader has seen.
        head: The newest revision in the store now; None if there is none.
        read: Reads a revision by its number; raises ObjectNotFoundError or DamagedRevisionError.
        pruned: Whether old revisions of the chain are removed.
    """
    if head is None or head.epoch < known.epoch:
        return False
    if head.epoch > known.epoch:
        return True
    if head.number <= known.number:
        return head.commit_id == known.commit_id
    if head.number == known.number + 1:
        return head.parent_commit_id == known.commit_id
    if pruned:
        return True  # the revisions in between are pruned: nothing can be compared
    with suppress(ObjectNotFoundError, DamagedRevisionError):
        return read(known.number + 1).parent_commit_id == known.commit_id
    # The next revision is missing or damaged, which `fsck` reports. This function only decides whether ``known`` was
    # lost.
    with suppress(ObjectNotFoundError, DamagedRevisionError):
        return read(known.number).commit_id == known.commit_id
    return False
