"""Metrics and health of deployments."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from controlplane.api.answers import json_answer
from controlplane.api.dependencies import App, ModelName
from controlplane.api.problems import responses
from controlplane.domain.durations import parse_duration
from controlplane.services.monitoring import MAX_POINTS, DeploymentMetrics

router = APIRouter(tags=["monitoring"])


@router.get(
    "/deployments/{model}/metrics",
    operation_id="getDeploymentMetrics",
    response_model=DeploymentMetrics,
    responses=responses(),
)
async def get_metrics(
    services: App,
    model: ModelName,
    window: Annotated[
        str, Query(max_length=20, description="How far back: `30s`, `5m`, `1h30m`; `6h` at most.", examples=["5m"])
    ] = "5m",
    points: Annotated[int, Query(ge=1, le=MAX_POINTS, description="Parts of the window to give a curve of.")] = 60,
) -> Response:
    """Return what a deployed model did in a window that ends now, by version and server, and how its objectives do.

    The figures are read from the Triton servers' own counters, so what clients send to Triton's ports counts too; they
    are this instance's, since it started. Windows up to ten minutes are kept by the second, longer ones by ten seconds.
    """
    seconds = parse_duration(window)
    return json_answer(await services.monitoring.metrics(model, window_seconds=max(seconds, 1.0), points=points))
