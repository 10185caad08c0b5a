"""Integrity check of a chain: every revision is readable and names the previous one as its parent.

Flaws in revisions before an operator's decision (a newer epoch) are reported but harmless.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from controlplane.errors import DamagedRevisionError, ObjectNotFoundError, StoreError
from controlplane.registry.chain import Chain
from controlplane.registry.revision import Revision


@dataclass(frozen=True, slots=True)
class Flaw:
    """A flaw of a chain.

    Attributes:
        reason: RevisionDamaged, RevisionMissing or ParentMismatch.
        number: The affected revision.
        message: One sentence.
        decided: Whether a later decision of an operator covers the flaw.
    """

    reason: str
    number: int
    message: str
    decided: bool = False


def check_chain(chain: Chain, numbers: Sequence[int]) -> tuple[list[Revision], list[Flaw]]:
    """Read all revisions of a chain and compare each with the one before.

    Args:
        chain: The chain.
        numbers: Its revision numbers as listed, newest first.

    Returns:
        The readable revisions, newest first, and the flaws.
    """
    revisions: list[Revision] = []
    damaged: list[Flaw] = []
    for number in numbers:
        try:
            revisions.append(chain.read(number))
        except ObjectNotFoundError:
            continue  # pruned since the listing
        except DamagedRevisionError as error:
            damaged.append(Flaw("RevisionDamaged", number, error.message))
    flaws = list(damaged)
    if not chain.pruned:  # in a pruned chain, the numbers below the newest may be missing
        unreadable = {flaw.number for flaw in damaged}
        flaws += _links(revisions, unreadable)
        flaws += _beginning(revisions[-1], unreadable) if revisions else []
    return revisions, _judged(flaws, revisions)


def require_sound(chain: Chain) -> None:
    """Verify that a chain's newest revisions are consecutive and that no number is missing. Few requests.

    Raises:
        StoreError: The chain is damaged or went backwards, so its content must not be the basis of deletions.
    """
    head = chain.head()  # raises if a lost revision was noted
    numbers = chain.numbers()
    pairs = list(pairwise(numbers))
    # Read only the newest pair and the pairs with a gap between their numbers; `check_chain` compares all parents.
    suspects = pairs[:1] + [(high, low) for high, low in pairs[1:] if high - low > 1]
    flaws = []
    for high, low in suspects:
        try:
            child, parent = chain.read(high), chain.read(low)
        except ObjectNotFoundError:
            continue
        except DamagedRevisionError as error:
            flaws += [] if head and head.epoch else [Flaw("RevisionDamaged", low, error.message)]
            continue
        decided = head is not None and (parent.epoch < child.epoch or child.epoch < head.epoch)
        flaws += [] if decided else _links([child, parent], set())
    if numbers and numbers[-1] != 1 and not (head and head.epoch):
        flaws += _beginning(chain.read(numbers[-1]), set())
    for flaw in flaws:
        raise StoreError(
            f"{chain.name} is damaged: {flaw.message}. Nothing is deleted; run `tritonctl fsck`",
            chain=chain.name,
            revision=flaw.number,
        )


def _links(revisions: Sequence[Revision], damaged: set[int]) -> list[Flaw]:
    flaws: list[Flaw] = []
    for child, parent in pairwise(revisions):
        if child.parent_commit_id == parent.commit_id:
            continue  # includes gaps: an operator's decision skips the numbers of lost revisions
        between = set(range(parent.number + 1, child.number))
        if missing := sorted(between - damaged):
            flaws.append(_missing(missing, child))
        elif not between:
            flaws.append(
                Flaw(
                    "ParentMismatch",
                    child.number,
                    f"revision {child.number} (by {child.actor}: {child.reason}) is not based on revision "
                    f"{parent.number} (by {parent.actor}: {parent.reason})",
                )
            )
    return flaws


def _beginning(oldest: Revision, damaged: set[int]) -> list[Flaw]:
    first = sorted(set(range(1, oldest.number)) - damaged)
    return [_missing(first, oldest)] if first and oldest.parent_commit_id is not None else []


def _missing(numbers: Sequence[int], child: Revision) -> Flaw:
    which = f"revision {numbers[0]} is" if len(numbers) == 1 else f"revisions {numbers[0]} to {numbers[-1]} are"
    return Flaw("RevisionMissing", child.number, f"{which} missing before revision {child.number}")


def _judged(flaws: Sequence[Flaw], revisions: Sequence[Revision]) -> list[Flaw]:
    if not revisions:
        return list(flaws)
    newest = revisions[0]
    # The oldest revision of the newest epoch is the decision; it covers all revisions below it.
    decision = min(revision.number for revision in revisions if revision.epoch == newest.epoch)
    return [
        Flaw(flaw.reason, flaw.number, flaw.message, decided=newest.epoch > 0 and flaw.number <= decision)
        for flaw in sorted(flaws, key=lambda flaw: -flaw.number)
    ]
