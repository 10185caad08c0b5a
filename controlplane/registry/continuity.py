"""Whether a chain still has the revision that a reader knows."""

from collections.abc import Callable
from contextlib import suppress

from controlplane.errors import DamagedRevisionError, ObjectNotFoundError
from controlplane.registry.revision import Revision


def continues(known: Revision, head: Revision | None, read: Callable[[int], Revision], *, pruned: bool = False) -> bool:
    """Whether ``head`` is ``known``, was committed after it, or was decided upon by an operator since.

    Args:
        known: The newest revision that the reader has seen.
        head: The newest revision in the store now; None where there is none.
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
        return True  # those between are removed: nothing can be compared
    with suppress(ObjectNotFoundError, DamagedRevisionError):
        return read(known.number + 1).parent_commit_id == known.commit_id
    # The next one is missing or damaged, which `fsck` reports. What is asked here is whether the known one was lost.
    with suppress(ObjectNotFoundError, DamagedRevisionError):
        return read(known.number).commit_id == known.commit_id
    return False
