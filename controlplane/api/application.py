"""The FastAPI application."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Response
from fastapi.openapi.utils import get_openapi

from controlplane.api import problems
from controlplane.api.links import add_links
from controlplane.api.metrics import registry as metrics_module
from controlplane.api.metrics.registry import Metrics
from controlplane.api.middleware import BodyLimits, Edge, IdempotencyKeys
from controlplane.api.page import add_page
from controlplane.api.permissions import PERMISSIONS, UNKNOWN
from controlplane.api.query import refuse_unknown
from controlplane.api.routers import (
    audit,
    conversions,
    declarations,
    deployments,
    devices,
    inference,
    keys,
    memory,
    models,
    monitoring,
    operations,
    placement,
    rollouts,
    samples,
    servers,
    sessions,
    signatures,
    system,
    tunings,
    uploads,
    versions,
)
from controlplane.api.schemas.operations import EventList
from controlplane.api.schemas.problems import Problem
from controlplane.api.tracing_middleware import TracingMiddleware
from controlplane.memory.views import LoadPlanView
from controlplane.services.health import version

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

DESCRIPTION = """
A control plane for NVIDIA Triton: a versioned model registry in a bucket, verified conversion, and deployments
that are healthy by proof.

* Requests that start long work return `202` with an **operation**: poll it, wait for it (`?wait=`) or follow it
  (server-sent events).
* Every error is an RFC 9457 **problem** (`application/problem+json`) with a stable `code`.
* Lists are returned in **pages**: pass `next_cursor` as `cursor` to get the next one.
* A `POST` with an **`Idempotency-Key`** can be repeated safely.
* Send an **API key** as `Authorization: Bearer …`. It is required once a key exists, and always if other machines
  can reach the port; `GET /v1/info` reports whether it is.
* `X-Actor` names the person or program that the request is made for; every history records it after the key's name.
"""

_TAGS = [
    {"name": "models", "description": "Models and their history."},
    {"name": "aliases", "description": "Movable names for versions."},
    {"name": "versions", "description": "Versions: immutable once published."},
    {"name": "uploads", "description": "Files to be published as a version."},
    {"name": "conversions", "description": "Conversion to ONNX or TorchScript, compared with the original."},
    {"name": "validations", "description": "Checks without publishing."},
    {"name": "deployments", "description": "Desired and observed state of deployed models."},
    {"name": "declarations", "description": "Documents that declare what is to exist."},
    {"name": "rollouts", "description": "Gradual replacement of the active version, decided by measurements."},
    {"name": "memory", "description": "Memory use by model and its reasons, plans, and holds."},
    {"name": "monitoring", "description": "Metrics, health and objectives of deployments."},
    {"name": "tunings", "description": "Search for the best settings of a deployment."},
    {"name": "inference", "description": "Inference through the control plane."},
    {"name": "operations", "description": "Work that outlasts a request."},
    {"name": "events", "description": "What changed, and why."},
    {"name": "servers", "description": "The Triton servers."},
    {"name": "keys", "description": "API keys and their permissions."},
    {"name": "audit", "description": "Who changed what, when and why."},
    {"name": "session", "description": "Sessions of browsers, for the page at `/ui`."},
    {"name": "maintenance", "description": "Garbage collection."},
    {"name": "info", "description": "The control plane itself."},
    {"name": "health", "description": "Endpoints for orchestrators and Prometheus."},
]


def create_application(
    metrics: Metrics, limits: BodyLimits, lifespan: Lifespan | None = None, *, health_only: bool = False
) -> FastAPI:
    """Return the application; ``app.state.services`` is set before it serves.

    Args:
        metrics: Counts the requests.
        limits: Maximum sizes of bodies.
        lifespan: Starts and stops the services that the application needs.
        health_only: Whether it has only the routes for orchestrators and Prometheus.
    """
    app = FastAPI(
        title="Triton control plane",
        summary="A versioned model registry, verified conversion and proved deployments for NVIDIA Triton.",
        description=DESCRIPTION,
        version=version(),
        openapi_tags=_TAGS,
        lifespan=lifespan,
        redirect_slashes=False,
        # FastAPI's own pages run scripts of a public server, in the origin of the page's sessions.
        docs_url=None,
        redoc_url=None,
        openapi_url=None if health_only else "/openapi.json",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    v1 = APIRouter(prefix="/v1", dependencies=[Depends(refuse_unknown)])
    for router in (
        models.router,
        versions.router,
        samples.router,
        signatures.router,
        uploads.router,
        conversions.router,
        deployments.router,
        declarations.router,
        rollouts.router,
        tunings.router,
        inference.router,
        operations.router,
        system.router,
        servers.router,
        devices.router,
        placement.router,
        memory.router,
        keys.router,
        audit.router,
        sessions.router,
        monitoring.router,
    ):
        v1.include_router(router)
    if not health_only:
        app.include_router(v1)
    app.include_router(system.health_router)

    async def metrics_text() -> Response:
        """Return Prometheus metrics of the control plane itself; Triton has its own."""
        return Response(await metrics.text(), media_type=metrics_module.MEDIA_TYPE)

    app.add_api_route(
        "/metrics",
        metrics_text,
        tags=["health"],
        operation_id="metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    if not health_only:
        add_page(app)
    problems.install(app)
    app.add_middleware(IdempotencyKeys)
    app.add_middleware(Edge, metrics=metrics.requests, limits=limits)
    app.add_middleware(TracingMiddleware)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, object]:
    """Return the OpenAPI document: FastAPI's, with problems in place of its own validation errors."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            routes=app.routes,
            tags=app.openapi_tags,
            license_info=app.license_info,
        )
        components = document.setdefault("components", {})
        components["securitySchemes"] = {"apiKey": {"type": "http", "scheme": "bearer"}}
        _say_needs(document)
        schemas = components.setdefault("schemas", {})
        for model in (Problem, EventList, LoadPlanView):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        add_links(document)
        app.openapi_schema = document
    return app.openapi_schema


def _say_needs(document: dict[str, Any]) -> None:
    """Write the required scope into each operation."""
    for methods in document["paths"].values():
        for operation in methods.values():
            need = PERMISSIONS.get(operation["operationId"], UNKNOWN)
            operation["security"] = [] if need.scope is None else [{"apiKey": [need.scope.value]}, {}]
