"""Garbage collection, the control plane itself, and its health."""

from fastapi import APIRouter, Response

from controlplane.api.answers import STARTS_OPERATION, accepted, json_answer
from controlplane.api.dependencies import Actor, App, Asker
from controlplane.api.problems import responses
from controlplane.api.routers.servers import seen
from controlplane.api.schemas.system import FsckRequest, GcRequest
from controlplane.gateway.views import GatewayView
from controlplane.services.health import Info, Readiness
from controlplane.services.scrubbing import ScrubView

router = APIRouter()
health_router = APIRouter(tags=["health"])


@router.get("/gateway", tags=["info"], operation_id="getGateway", response_model=GatewayView, responses=responses(404))
async def get_gateway(services: App) -> Response:
    """Return the state of the gateway: URLs, routes and request counts of the models, requests that wait for a load."""
    return json_answer(await services.gateway.view())


@router.post(
    "/gc",
    tags=["maintenance"],
    operation_id="collectGarbage",
    **STARTS_OPERATION,
)
async def collect_garbage(services: App, body: GcRequest, actor: Actor) -> Response:
    """Remove unreferenced blobs, abandoned uploads and old records. A dry run by default."""
    return accepted(services.garbage.start(dry_run=body.dry_run, grace_seconds=body.grace_seconds, actor=actor))


@router.get("/scrub", tags=["maintenance"], operation_id="getScrub", response_model=ScrubView, responses=responses())
async def get_scrub(services: App) -> Response:
    """Return the state of the scrub: its position, its last complete pass, and which blobs are damaged or missing."""
    return json_answer(services.scrubbing.view())


@router.post(
    "/fsck",
    tags=["maintenance"],
    operation_id="checkStore",
    **STARTS_OPERATION,
)
async def check_store(services: App, body: FsckRequest, actor: Actor) -> Response:
    """Check the store, repair what can be repaired, and commit decisions about chains that went backwards."""
    return accepted(
        services.checking.start(
            deep=body.deep,
            repair=body.repair,
            accept=body.accept,
            restore=body.restore,
            reason=body.reason,
            actor=actor,
        )
    )


@router.get("/info", tags=["info"], operation_id="getInfo", response_model=Info, responses=responses())
async def get_info(services: App, asker: Asker) -> Response:
    """Return information about this instance: version, store, folders, servers, converters, authentication."""
    info = services.health.info()
    return json_answer(info.model_copy(update={"servers": tuple(seen(server, asker) for server in info.servers)}))


@health_router.get("/healthz", operation_id="healthz")
async def healthz() -> dict[str, str]:
    """Report that the process is alive."""
    return {"status": "ok"}


@health_router.get(
    "/readyz",
    operation_id="readyz",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Not ready; the checks report why."}},
)
async def readyz(services: App) -> Response:
    """Report whether the store is reachable, the reconciler is running, and the Triton servers respond."""
    readiness = await services.health.readiness()
    if services.keys.enforced:
        # This route is public: it shows which check fails, but not why (addresses, names).
        quiet = tuple(check.model_copy(update={"message": ""}) for check in readiness.checks)
        readiness = readiness.model_copy(update={"checks": quiet})
    return json_answer(readiness, 200 if readiness.ready else 503)
