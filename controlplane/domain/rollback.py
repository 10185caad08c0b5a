"""Where a rollback goes: the revision before, or a named one."""

from collections.abc import Sequence
from typing import Protocol

from controlplane.domain.deployment import DeploymentSpec
from controlplane.domain.names import Reference
from controlplane.errors import ConflictError, NotFoundError


class NumberedSpec(Protocol):
    """A desired state with its revision number."""

    @property
    def number(self) -> int: ...  # noqa: D102

    @property
    def spec(self) -> DeploymentSpec: ...  # noqa: D102


def rollback_target(history: Sequence[NumberedSpec], revision: int | None = None) -> DeploymentSpec:
    """Return the desired state to commit: that of an earlier revision, its version pinned.

    Pinned, because an alias that the earlier revision followed has moved on since: following it would undo the
    rollback at once.

    Args:
        history: Revisions of one deployment, newest first; the first is the present one.
        revision: The revision to go back to; None means the newest one that ran something else than the present one:
            another version, or other settings.

    Raises:
        ConflictError: Nothing is deployed, or there is nothing to go back to.
        NotFoundError: There is no revision of the given number.
    """
    if not history or history[0].spec.deleted:
        model = history[0].spec.model if history else "the model"
        raise ConflictError(f"{model} is not deployed, so it cannot be rolled back; deploy a version instead")
    present = history[0].spec
    if revision is None:
        for earlier in history[1:]:
            if not earlier.spec.deleted and _differs(earlier.spec, present):
                return _pinned(earlier.spec)
        raise ConflictError(
            f"{present.model} has no earlier revision with another version or other settings to go back to",
            model=present.model,
        )
    for earlier in history:
        if earlier.number == revision:
            if earlier.spec.deleted:
                raise ConflictError(
                    f"revision {revision} of {present.model} removed the deployment; choose another or undeploy",
                    model=present.model,
                    revision=revision,
                )
            return _pinned(earlier.spec)
    raise NotFoundError(
        f"the deployment of {present.model} has no revision {revision}; its newest is {history[0].number}",
        model=present.model,
        revision=revision,
    )


def _differs(one: DeploymentSpec, other: DeploymentSpec) -> bool:
    return (one.version, one.settings) != (other.version, other.settings)


def _pinned(spec: DeploymentSpec) -> DeploymentSpec:
    reference = Reference(spec.model, version=spec.version)
    return spec.with_changes(reference=str(reference), loaded=True)
