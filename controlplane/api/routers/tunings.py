"""Tunings of deployments."""

from fastapi import APIRouter, Response

from controlplane.api.answers import accepted
from controlplane.api.dependencies import IDEMPOTENT, Actor, App, Asker
from controlplane.api.problems import Documented, responses
from controlplane.api.schemas.tunings import TuningRequest, TuningSpace
from controlplane.domain.tuning import Objective
from controlplane.services.operations import Operation
from controlplane.services.tuning.service import Axes, TuneCommand

router = APIRouter()

_STARTED: Documented = {202: {"description": "Started; follow the operation"}}


@router.post(
    "/tunings",
    tags=["tunings"],
    dependencies=[IDEMPOTENT],
    operation_id="tune",
    status_code=202,
    response_model=Operation,
    responses=responses(409, also=_STARTED),
)
async def tune(services: App, body: TuningRequest, actor: Actor, asker: Asker) -> Response:
    """Try settings on a copy of a deployed model on the real server, and find the best for an objective.

    The operation's `progress.details.trials` has what was measured so far. Its result has `trials`, `frontier`, `met`,
    `message`, `best`, `applied_revision` and the plot as `svg`. Where no setting meets the objective the operation
    succeeds with `met: false`, and nothing is applied. Cancelling it removes the copy.
    """
    if asker is not None:
        asker.require_model(body.model)
    command = TuneCommand(
        actor=actor,
        asker=asker,
        model=body.model,
        objective=Objective(
            goal=body.objective, max_p99_seconds=body.max_p99_seconds, min_throughput=body.min_throughput
        ),
        clients=tuple(body.clients),
        rows=body.rows,
        axes=_axes(body.space),
        max_settings=body.max_settings,
        window_seconds=body.window_seconds,
        time_limit_seconds=body.time_limit_seconds,
        memory_limit_bytes=body.memory_limit_bytes,
        server=body.server,
        apply=body.apply,
        reason=body.reason,
    )
    return accepted(await services.tunings.start(command))


def _axes(space: TuningSpace) -> Axes:
    given = {name: tuple(dict.fromkeys(values)) for name, values in space if values is not None}
    return Axes(**given)
