"""Input of the planner: desired and observed state of one model on one server. Frozen values only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum


class ProofStatus(StrEnum):
    """What is known of a loaded version's answers since it was loaded."""

    UNPROVED = "unproved"
    PASSED = "passed"
    UNRESPONSIVE = "unresponsive"
    """It did not answer. A reload may fix it."""
    TIMED_OUT = "timed-out"
    """It did not answer in time: broken, or only busy. A result of a proof that is never kept."""
    MISMATCH = "mismatch"
    """Its answer differs from the recorded output. Only another version or other settings fix that."""
    REGRESSED = "regressed"
    """It answers correctly, but is slower or larger than its deployment allows. Final, too."""

    @property
    def bad(self) -> bool:
        """Whether it is known not to answer as required."""
        return self in {ProofStatus.UNRESPONSIVE, ProofStatus.MISMATCH, ProofStatus.REGRESSED}

    @property
    def final(self) -> bool:
        """Whether another try would give the same result."""
        return self in {ProofStatus.MISMATCH, ProofStatus.REGRESSED}


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """A version under one configuration: the unit that is loaded and proved, and that can fail.

    Attributes:
        version: The version number.
        digest: Digest of its Triton configuration without name and version policy. Only versions with equal digests can
            be loaded together under one name, because Triton has one configuration per name.
    """

    version: int
    digest: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a target is not tried again now.

    Attributes:
        count: Consecutive failures.
        message: The newest failure, as one sentence.
        retry_at: Time of the next try (UTC); None for no retry until the desired state changes.
    """

    count: int
    message: str
    retry_at: datetime | None

    def blocks(self, now: datetime) -> bool:
        """Return whether the target must wait at this moment."""
        return self.retry_at is None or now < self.retry_at


@dataclass(frozen=True, slots=True)
class DesiredReplica:
    """Desired state of one model on one server.

    Attributes:
        model: Its name, in the registry and in Triton.
        revision: The deployment revision that defines this state.
        revised_at: When that revision was committed (UTC).
        loaded: Whether the model is to be loaded.
        deleted: Whether the deployment was removed, so that its files are removed from the server's disk.
        targets: The desired target first, then the fallbacks if it fails, best first.
        history: Earlier versions of the deployment, newest first, without the desired one; the first that is still
            loaded is kept during the bake window.
        bake_seconds: How long the previous version stays loaded.
        relocation_reason: Why the model must be loaded again on its assigned GPUs; empty if it is on them.
        why: Why the model is not to be loaded although the deployment requests it; empty if that is the deployment's
            own setting.
        refused: Whether the reason is that it cannot be loaded.
        trial: The new version of a rollout by evidence, which is to be loaded and proved under the candidate's name
            beside the active version, and to stay loaded. None if there is none.
        fits_alongside: Whether the free memory is enough for another replica of the desired version, so that a proved
            candidate can be unloaded after the version is active instead of before it is loaded.
        proof_on_record: Whether the desired target may be loaded once, because the same content has passed its proof
            with the same configuration, backend version and kind of device.
        needed: Versions that pipelines on this server need: they are loaded beside the active version.
        users: Pipelines that are loaded on this server and use the model, which are unloaded before it.
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
    proof_on_record: bool = False
    needed: frozenset[int] = frozenset()
    users: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ObservedReplica:
    """Observed state of one model on one server.

    Attributes:
        loaded: Versions that Triton reports as READY under the model's own name. The highest one is active.
        digest: Configuration digest that Triton has for the own name; None if nothing is loaded or it is not ours.
        loading: Whether Triton is loading a version under the own name or the candidate's.
        leaving: Versions that Triton is still unloading under the own name; their memory is not free yet.
        staged: Versions in the model repository under the own name.
        marks: What is known of the loaded versions' answers.
        candidate: The version loaded under the candidate's name.
        candidate_digest: Configuration digest that Triton has for the candidate.
        candidate_leaving: Whether Triton is still unloading the candidate.
        candidate_staged: Versions in the model repository under the candidate's name.
        candidate_mark: What is known of the candidate's answers.
        cleared: Targets that passed their proof since the server started, and have not failed since.
        failures: Failures by target.
        switched: The version that last became active, and when (UTC); None if unknown.
        hold_until: No action before this time (UTC), because a step without a target failed.
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
        """The version to which Triton sends requests that name no version."""
        return max(self.loaded, default=None)

    def mark(self, version: int) -> ProofStatus:
        """Return what is known of a loaded version's answers."""
        return self.marks.get(version, ProofStatus.UNPROVED)


def bake_until(desired: DesiredReplica, observed: ObservedReplica, version: int) -> datetime:
    """Return when the bake window of ``version`` ends.

    It starts with the switch, or with the revision if the time of the switch is unknown after a restart.
    """
    since = desired.revised_at
    if observed.switched and observed.switched[0] == version:
        since = observed.switched[1]
    return since + timedelta(seconds=desired.bake_seconds)
