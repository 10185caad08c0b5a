"""Target of a rollback: the previous revision, or a named one."""

from collections.abc import Iterable
from itertools import chain
from typing import Protocol, TypeVar

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec
from controlplane.domain.names import Reference
from controlplane.errors import ConflictError, NotFoundError


class NumberedSpec(Protocol):
    """A desired state with its revision number."""

    @property
    def number(self) -> int: ...  # noqa: D102

    @property
    def spec(self) -> DeploymentSpec: ...  # noqa: D102


Revision = TypeVar("Revision", bound=NumberedSpec)


def rollback_target(history: Iterable[NumberedSpec], revision: int | None = None) -> DeploymentSpec:
    """Return the desired state to commit: that of `rollback_revision`, with its version fixed.

    The version is fixed because an alias that the earlier revision followed has moved since: following it would undo
    the rollback at once.

    Args:
        history: As for `rollback_revision`.
        revision: As for `rollback_revision`.

    Raises:
        ConflictError: As for `rollback_revision`.
        NotFoundError: As for `rollback_revision`.
    """
    revisions = iter(history)
    first = next(revisions, None)
    seen = () if first is None else (first,)
    goal = rollback_revision(chain(seen, revisions), revision).spec
    return pinned(goal, goal if first is None else first.spec)


def rollback_revision(history: Iterable[Revision], revision: int | None = None) -> Revision:
    """Return the revision that a rollback restores.

    Args:
        history: Revisions of one deployment, newest first; the first is the current one. Read no further than needed.
        revision: The revision to restore; None for the newest one that ran something else than the current one: another
            version, or other settings.

    Raises:
        ConflictError: Nothing is deployed, or there is no revision to restore.
        NotFoundError: There is no revision with the given number.
    """
    revisions = iter(history)
    newest = next(revisions, None)
    if newest is None or newest.spec.deleted:
        model = newest.spec.model if newest else "the model"
        raise ConflictError(f"{model} is not deployed, so it cannot be rolled back; deploy a version instead")
    present = newest.spec
    if revision is None:
        for earlier in revisions:
            if not earlier.spec.deleted and _differs(earlier.spec, present):
                return earlier
        raise ConflictError(
            f"{present.model} has no earlier revision with another version or other settings to roll back to",
            model=present.model,
        )
    for candidate in chain((newest,), revisions):
        if candidate.number == revision:
            if candidate.spec.deleted:
                raise ConflictError(
                    f"revision {revision} of {present.model} removed the deployment; choose another revision, or "
                    "undeploy the model",
                    model=present.model,
                    revision=revision,
                )
            return candidate
    raise NotFoundError(
        f"the deployment of {present.model} has no revision {revision}; the newest is {newest.number}",
        model=present.model,
        revision=revision,
    )


def pinned(spec: DeploymentSpec, present: DeploymentSpec) -> DeploymentSpec:
    """Return the desired state with its version fixed and loaded, and the current objectives and applied document."""
    reference = Reference(spec.model, version=spec.version)
    settings = spec.settings.model_copy(update={"objectives": present.settings.objectives})
    return spec.with_changes(
        reference=str(reference), loaded=True, settings=settings, rollout=None, applied=present.applied
    )


def _differs(one: DeploymentSpec, other: DeploymentSpec) -> bool:
    """Return whether two desired states run something different; objectives do not affect that."""
    return (one.version, _run(one.settings)) != (other.version, _run(other.settings))


def _run(settings: DeploymentSettings) -> DeploymentSettings:
    return settings.model_copy(update={"objectives": None})
