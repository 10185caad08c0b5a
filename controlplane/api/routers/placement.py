"""Placement of models."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from controlplane.api.answers import json_answer
from controlplane.api.dependencies import IDEMPOTENT, App
from controlplane.api.problems import responses
from controlplane.api.schemas.memory import DryRun
from controlplane.placement.views import DefragmentationView

router = APIRouter(tags=["memory"])


@router.post(
    "/placement/defragment",
    dependencies=[IDEMPOTENT],
    operation_id="defragment",
    response_model=DefragmentationView,
    responses=responses(409),
)
async def defragment(
    services: App,
    dry_run: DryRun = False,
    limit: Annotated[int, Query(ge=1, le=10_000, description="Move at most so many copies.")] = 100,
) -> Response:
    """Move models between servers where that gains more than it costs; with `dry_run`, only say which.

    Off servers that are assigned more than fits at once, out of zones that have two copies of a model, and together, so
    that free memory is in large pieces. The answer has each move with its gain and cost. Each model is loaded and
    proved at its new place before the old copy goes, after this has answered. Only the instance that leads can do it.
    """
    return json_answer(services.placement.defragment(dry_run=dry_run, limit=limit))
