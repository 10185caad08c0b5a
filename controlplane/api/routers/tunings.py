"""Tunings of deployments."""

from fastapi import APIRouter, Response

from controlplane.api.answers import STARTS_OPERATION, accepted
from controlplane.api.dependencies import Actor, App, Asker
from controlplane.api.schemas.tunings import TuningRequest, TuningSpace
from controlplane.domain.tuning import Objective
from controlplane.services.tuning.service import Axes, TuneCommand

router = APIRouter()


@router.post(
    "/tunings",
    tags=["tunings"],
    operation_id="tune",
    **STARTS_OPERATION,
)
async def tune(services: App, body: TuningRequest, actor: Actor, asker: Asker) -> Response:
    """Measure settings on a copy of a deployed model on the real server, and find the best ones for an objective.

    The operation's `progress.details.trials` has the measurements so far. Its result has `trials`, `frontier`, `met`,
    `message`, `best`, `applied_revision` and the plot as `svg`. If no setting meets the objective, the operation
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
