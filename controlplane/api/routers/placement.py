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
    limit: Annotated[int, Query(ge=1, le=10_000, description="Maximum number of replicas to move.")] = 100,
) -> Response:
    """Move models between servers if the gain exceeds the cost; with `dry_run`, only return the moves.

    Moves relieve servers that are assigned more than fits, spread the replicas of a model over zones, and consolidate
    free memory. The response has each move with its gain and cost. Each model is loaded and
    proved on its new server before the old replica is unloaded, after the response. Only the leader can do it.
    """
    return json_answer(services.placement.defragment(dry_run=dry_run, limit=limit))
