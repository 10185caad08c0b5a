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
        str,
        Query(max_length=20, description="Length of the window: `30s`, `5m`, `1h30m`; at most `6h`.", examples=["5m"]),
    ] = "5m",
    points: Annotated[
        int, Query(ge=1, le=MAX_POINTS, description="Number of equal parts of the window to return.")
    ] = 60,
) -> Response:
    """Return a model's metrics in a window that ends now, by version and server, and the state of its objectives.

    The figures are read from the Triton servers' own counters, so direct requests to Triton's ports count too. They
    cover the time since this instance started. The resolution is one second in windows of up to ten minutes, and ten
    seconds in longer ones.
    """
    seconds = parse_duration(window)
    return json_answer(await services.monitoring.metrics(model, window_seconds=max(seconds, 1.0), points=points))
