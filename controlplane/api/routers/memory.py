"""Memory use by model and its reasons, and clients' holds."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from controlplane.api.answers import json_answer
from controlplane.api.dependencies import IDEMPOTENT, Actor, App, ModelName, Wait
from controlplane.api.problems import Documented, responses
from controlplane.api.schemas.memory import HoldList, HoldRenewal, HoldRequest, MemoryList
from controlplane.memory.views import ExplanationView
from controlplane.services.holds import Hold

router = APIRouter(tags=["memory"])

HoldId = Annotated[str, Path(description="The hold's ID.", max_length=64)]

_TAKEN: Documented = {201: {"description": "The hold was created; `ready` is true if the model is already active."}}
_GONE: Documented = {204: {"description": "The hold has ended."}}


@router.get("/memory", operation_id="getMemory", response_model=MemoryList, responses=responses())
async def get_memory(
    services: App,
    server: Annotated[str | None, Query(max_length=200, description="Only the ledger of this server.")] = None,
) -> Response:
    """Return the ledger of each server: by device and model, the queue, the newest evictions and the next candidates.

    On each device, `reserved_bytes + loading_bytes + resident_bytes + unloading_bytes` never exceeds `budget_bytes`.
    Memory in use on the device beyond the ledger is `unaccounted_bytes`, and counts against the budget.
    """
    found = services.memory.servers() if server is None else (services.memory.of(server),)
    return json_answer(MemoryList(items=list(found)))


@router.get(
    "/deployments/{model}/explanation",
    operation_id="getExplanation",
    response_model=ExplanationView,
    responses=responses(),
)
async def get_explanation(services: App, model: ModelName) -> Response:
    """Explain the memory state of a model: why it is loaded, waiting or evicted, or why it cannot be loaded.

    For a model that is not loaded, the response has the figures: how much its load needs, how much is free, how much
    eviction could free, and which models hold the rest.
    """
    return json_answer(await services.memory.why(model))


@router.post(
    "/deployments/{model}/holds",
    dependencies=[IDEMPOTENT],
    operation_id="takeHold",
    status_code=201,
    response_model=Hold,
    responses=responses(409, also=_TAKEN),
)
async def take_hold(
    services: App, model: ModelName, actor: Actor, body: HoldRequest | None = None, wait: Wait = 0.0
) -> Response:
    """Hold a model: it is loaded, and stays loaded until the hold ends. Renew the hold before it expires.

    With `wait`, the response is sent when the model is active, and the time to live starts then. If it cannot be loaded
    (`insufficient-memory`, `deployment-failed`), no hold is created. If the time expires first, the hold is created and
    `ready` is false.
    """
    asked = body or HoldRequest()
    hold = await services.holds.take(
        model, ttl_seconds=asked.ttl_seconds, holder=asked.holder or actor, wait_seconds=wait
    )
    return json_answer(hold, 201, {"Location": f"/v1/deployments/{model}/holds/{hold.id}"})


@router.get("/deployments/{model}/holds", operation_id="listHolds", response_model=HoldList, responses=responses())
async def list_holds(services: App, model: ModelName) -> Response:
    """Return the current holds of a model."""
    return json_answer(HoldList(items=list(await services.holds.list(model))))


@router.get("/deployments/{model}/holds/{hold}", operation_id="getHold", response_model=Hold, responses=responses())
async def get_hold(services: App, model: ModelName, hold: HoldId) -> Response:
    """Return one hold."""
    return json_answer(await services.holds.get(model, hold))


@router.put("/deployments/{model}/holds/{hold}", operation_id="renewHold", response_model=Hold, responses=responses())
async def renew_hold(services: App, model: ModelName, hold: HoldId, body: HoldRenewal | None = None) -> Response:
    """Renew a hold for `ttl_seconds` from now.

    A hold that has ended cannot be renewed (404): the model may be unloaded, so create a new hold.
    """
    return json_answer(await services.holds.renew(model, hold, ttl_seconds=(body or HoldRenewal()).ttl_seconds))


@router.delete(
    "/deployments/{model}/holds/{hold}",
    operation_id="giveHoldBack",
    status_code=204,
    responses=responses(also=_GONE),
)
async def release_hold(services: App, model: ModelName, hold: HoldId) -> Response:
    """End a hold before it expires. If it has already ended, this is not an error."""
    await services.holds.give_back(model, hold)
    return Response(status_code=204)
