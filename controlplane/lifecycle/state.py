"""What goes into the planner: the wanted and the observed state of one model on one server. Frozen values only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum


class ProofStatus(StrEnum):
    """What is known of a loaded version's answers, since it was loaded."""

    UNPROVED = "unproved"
    PASSED = "passed"
    BROKEN = "broken"
    """It did not answer. A reload may mend it."""
    LATE = "late"
    """It did not answer in time: broken, or only busy. What a proof finds; nothing that is remembered."""
    WRONG = "wrong"
    """It answered something else than what was recorded. Nothing but another version or other settings mends that."""
    REGRESSED = "regressed"
    """It answers rightly, and is slower or larger than its deployment allows. Final, too."""

    @property
    def bad(self) -> bool:
        """Whether it is known not to answer as it should."""
        return self in {ProofStatus.BROKEN, ProofStatus.WRONG, ProofStatus.REGRESSED}

    @property
    def final(self) -> bool:
        """Whether to try again would find the same."""
        return self in {ProofStatus.WRONG, ProofStatus.REGRESSED}


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """A version under one configuration: what is proved, loaded, and can fail.

    Attributes:
        version: The version number.
        digest: Digest of its Triton configuration without name and version policy. Versions of equal digests can be
            loaded beside each other under one name, others cannot: Triton has one configuration per name.
    """

    version: int
    digest: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a target is not (yet) tried again.

    Attributes:
        count: Failures in a row.
        message: The newest one, as one sentence.
        retry_at: When it is tried again (UTC); None where it is not, until something else is wanted.
    """

    count: int
    message: str
    retry_at: datetime | None

    def blocks(self, now: datetime) -> bool:
        """Whether the target has to wait at this moment."""
        return self.retry_at is None or now < self.retry_at


@dataclass(frozen=True, slots=True)
class DesiredReplica:
    """What is wanted of one model on one server.

    Attributes:
        model: Its name, in the registry and in Triton.
        revision: The deployment revision this comes from.
        revised_at: When that revision was committed (UTC).
        loaded: Whether it shall be loaded.
        deleted: Whether the deployment was removed, so that nothing of it stays on the server's disk.
        targets: The wanted one first, then what to fall back to where that fails, best first.
        history: Versions the deployment had, newest first, the wanted one left out; the first that is still loaded is
            the one kept in the bake window.
        bake_seconds: How long the version before stays loaded.
        relocation_reason: Why what is loaded has to be loaded again: it is on other GPUs of the server than its place;
            empty where it is not.
        why: Why it shall not be loaded although the deployment would have it; empty where it is the deployment's word.
        refused: Whether that is because it cannot be.
        trial: What shall be loaded and proved under the candidate's name, beside what answers, and stay there: the new
            version of a rollout by evidence. None where there is none.
        fits_alongside: Whether a further replica of the wanted version fits into what is free, so that a proved
            candidate may go after the version answers instead of before it is loaded.
    """

    model: str
    revision: int
    revised_at: datetime
    loaded: bool
    deleted: bool = False
    targets: tuple[Target, ...] = ()
    history: tuple[int, ...] = ()
    bake_seconds: float = 0.0
    relocation_reason: str = ""
    why: str = ""
    refused: bool = False
    trial: Target | None = None
    fits_alongside: bool = False


@dataclass(frozen=True, slots=True)
class ObservedReplica:
    """What is there of one model on one server.

    Attributes:
        loaded: Versions that Triton says are READY under the model's own name. The highest one answers.
        digest: Configuration digest that Triton has for the own name; None where nothing is loaded or it is not ours.
        loading: Whether Triton is busy loading something for the own name or the candidate's.
        leaving: Versions that Triton is still unloading under the own name; their memory is not free yet.
        staged: Versions in the model repository under the own name.
        marks: What is known of the loaded versions' answers.
        candidate: The version loaded under the candidate's name.
        candidate_digest: Configuration digest that Triton has for the candidate.
        candidate_leaving: Whether Triton is still unloading the candidate.
        candidate_staged: Versions in the model repository under the candidate's name.
        candidate_mark: What is known of the candidate's answers.
        cleared: Targets that passed their proof since the server started, and did not fail since.
        failures: What failed, by target.
        switched: The version that was made the answering one, and when (UTC); None where nobody remembers.
        hold_until: Nothing is done before (UTC), because something that belongs to no target failed.
    """

    loaded: frozenset[int] = frozenset()
    digest: str | None = None
    loading: bool = False
    leaving: frozenset[int] = frozenset()
    staged: frozenset[int] = frozenset()
    marks: Mapping[int, ProofStatus] = field(default_factory=dict)
    candidate: int | None = None
    candidate_digest: str | None = None
    candidate_leaving: bool = False
    candidate_staged: frozenset[int] = frozenset()
    candidate_mark: ProofStatus = ProofStatus.UNPROVED
    cleared: frozenset[Target] = frozenset()
    failures: Mapping[Target, Failure] = field(default_factory=dict)
    switched: tuple[int, datetime] | None = None
    hold_until: datetime | None = None

    @property
    def answering(self) -> int | None:
        """The version that Triton gives un-versioned requests to."""
        return max(self.loaded, default=None)

    def mark(self, version: int) -> ProofStatus:
        """What is known of a loaded version's answers."""
        return self.marks.get(version, ProofStatus.UNPROVED)


def bake_until(desired: DesiredReplica, observed: ObservedReplica, version: int) -> datetime:
    """When the bake window of ``version`` ends.

    It starts with the switch; where nobody remembers the switch (the control plane was restarted), with the revision.
    """
    since = desired.revised_at
    if observed.switched and observed.switched[0] == version:
        since = observed.switched[1]
    return since + timedelta(seconds=desired.bake_seconds)
