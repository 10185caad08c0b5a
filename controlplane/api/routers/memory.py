"""Who holds which memory, why, and clients that hold a model."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from controlplane.api.answers import json_answer
from controlplane.api.dependencies import IDEMPOTENT, Actor, App, ModelName, Wait
from controlplane.api.problems import Documented, responses
from controlplane.api.schemas.memory import LeaseList, LeaseRenewal, LeaseRequest, MemoryList
from controlplane.reconciler.memory_view import WhyView
from controlplane.services.leases import Lease

router = APIRouter(tags=["memory"])

LeaseId = Annotated[str, Path(description="The lease's id.", max_length=64)]

_TAKEN: Documented = {201: {"description": "It is held; `ready` says whether it answers already."}}
_GONE: Documented = {204: {"description": "It is not held by this lease any more."}}


@router.get("/memory", operation_id="getMemory", response_model=MemoryList, responses=responses())
async def get_memory(
    services: App,
    server: Annotated[str | None, Query(max_length=200, description="Only this server's.")] = None,
) -> Response:
    """Return the ledger of each server: by device and by model, the queue, the newest evictions and who is next.

    On each device, `reserved_bytes + loading_bytes + resident_bytes + unloading_bytes` never exceeds `budget_bytes`.
    What the device says is in use beyond what the ledger knows is `unaccounted_bytes`, and counts against the budget.
    """
    found = services.memory.servers() if server is None else (services.memory.of(server),)
    return json_answer(MemoryList(items=list(found)))


@router.get("/deployments/{model}/why", operation_id="getWhy", response_model=WhyView, responses=responses())
async def get_why(services: App, model: ModelName) -> Response:
    """Say why a model is where it is: loaded, waiting, evicted for another, or why it cannot be loaded.

    For a model that is not loaded there are the figures: how much its load needs, how much is free, how much eviction
    could free, and what holds the rest.
    """
    return json_answer(await services.memory.why(model))


@router.post(
    "/deployments/{model}/leases",
    dependencies=[IDEMPOTENT],
    operation_id="takeLease",
    status_code=201,
    response_model=Lease,
    responses=responses(409, also=_TAKEN),
)
async def take_lease(
    services: App, model: ModelName, actor: Actor, body: LeaseRequest | None = None, wait: Wait = 0.0
) -> Response:
    """Hold a model: it is loaded, and stays loaded until the lease ends. Renew it in time.

    With `wait` the answer comes when the model answers; the time to live counts from then. Where it cannot be loaded
    (`insufficient-memory`, `deployment-failed`), nothing is held. Where the time is up first, it is held and
    `ready` is false.
    """
    asked = body or LeaseRequest()
    lease = await services.leases.take(
        model, ttl_seconds=asked.ttl_seconds, holder=asked.holder or actor, wait_seconds=wait
    )
    return json_answer(lease, 201, {"Location": f"/v1/deployments/{model}/leases/{lease.id}"})


@router.get("/deployments/{model}/leases", operation_id="listLeases", response_model=LeaseList, responses=responses())
async def list_leases(services: App, model: ModelName) -> Response:
    """Return who holds a model at this moment."""
    return json_answer(LeaseList(items=list(await services.leases.list(model))))


@router.get("/deployments/{model}/leases/{lease}", operation_id="getLease", response_model=Lease, responses=responses())
async def get_lease(services: App, model: ModelName, lease: LeaseId) -> Response:
    """Return one lease."""
    return json_answer(await services.leases.get(model, lease))


@router.put(
    "/deployments/{model}/leases/{lease}", operation_id="renewLease", response_model=Lease, responses=responses()
)
async def renew_lease(services: App, model: ModelName, lease: LeaseId, body: LeaseRenewal | None = None) -> Response:
    """Hold it for `ttl_seconds` from now.

    One that has ended is not renewed (404): the model may be gone, so take a new lease.
    """
    return json_answer(await services.leases.renew(model, lease, ttl_seconds=(body or LeaseRenewal()).ttl_seconds))


@router.delete(
    "/deployments/{model}/leases/{lease}",
    operation_id="giveLeaseBack",
    status_code=204,
    responses=responses(also=_GONE),
)
async def give_lease_back(services: App, model: ModelName, lease: LeaseId) -> Response:
    """End a lease before its time. One that has ended already is no error."""
    await services.leases.give_back(model, lease)
    return Response(status_code=204)
