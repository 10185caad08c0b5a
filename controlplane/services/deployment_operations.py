"""Operations of deployments, derived from a revision and its model's status, so that any instance can answer."""

from pydantic import TypeAdapter

from controlplane.domain.names import validate_model_name
from controlplane.domain.states import DeploymentStatus, Phase, ServerDeploymentStatus
from controlplane.errors import NotFoundError
from controlplane.registry.deployments import DeploymentRevision
from controlplane.services.error_info import ErrorInfo
from controlplane.services.operations import Operation, OperationState, Progress

OPERATION_PREFIX = "deploy."
_SERVERS = TypeAdapter(tuple[ServerDeploymentStatus, ...])


def parse_operation(operation_id: str) -> tuple[str, int]:
    """Return the model and the revision that an operation's identifier names.

    Raises:
        NotFoundError: The identifier is not that of a deployment's operation.
    """
    model, _, number = operation_id.removeprefix(OPERATION_PREFIX).rpartition(".")
    if not (number.isascii() and number.isdigit() and len(number) <= 12):
        raise NotFoundError(f"operation {operation_id[:80]!r} does not exist", operation=operation_id[:80])
    return validate_model_name(model), int(number)


def describe_operation(
    revision: DeploymentRevision, newest: DeploymentRevision, status: DeploymentStatus | None
) -> Operation:
    """Return the operation of a revision, derived from the newest revision and the model's status."""
    spec = revision.spec
    state, error, result = OperationState.RUNNING, None, None
    progress = Progress(stage=Phase.PENDING.value.lower(), message="waiting for the reconciler")
    if newest.number > revision.number:
        state = OperationState.CANCELLED
        progress = Progress(stage="superseded", message=f"superseded by revision {newest.number}")
    elif status is not None and status.revision >= revision.number:
        progress = Progress(
            stage=status.phase.value.lower(), message=status.message, fraction=1.0 if status.phase.settled else None
        )
        if status.phase in {Phase.FAILED, Phase.DEGRADED}:
            state = OperationState.FAILED
            error = ErrorInfo(
                code="deployment-failed",
                title="Deployment failed",
                detail=status.message or f"{spec.model} is {status.phase.value}",
                details={"phase": status.phase.value, "model": spec.model, "version": spec.version},
            )
        elif status.phase.settled:
            state = OperationState.SUCCEEDED
            result = {
                "model": spec.model,
                "version": spec.version,
                "revision": revision.number,
                "phase": status.phase.value,
                "servers": _SERVERS.dump_python(status.servers, mode="json"),
            }
    return Operation(
        id=f"{OPERATION_PREFIX}{spec.model}.{revision.number}",
        kind="deploy",
        subject=spec.reference,
        state=state,
        actor=revision.actor,
        created_at=revision.at,
        updated_at=revision.at,
        progress=progress,
        result=result,
        error=error,
    )
