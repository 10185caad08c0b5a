"""Triton servers: their state, their cordons and drains."""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from controlplane.api.answers import json_answer
from controlplane.api.dependencies import IDEMPOTENT, Actor, App, Asker, may_see
from controlplane.api.problems import responses
from controlplane.api.schemas.servers import CordonRequest, ServerList
from controlplane.domain.access import Principal
from controlplane.domain.conditions import ServerCondition
from controlplane.domain.cordons import Cordon
from controlplane.domain.states import ServerStatus
from controlplane.placement.views import DrainPlanView

router = APIRouter(prefix="/servers", tags=["servers"])

ServerName = Annotated[str, Path(description="The server's name.")]


@router.get("", operation_id="listServers", response_model=ServerList, responses=responses())
async def list_servers(services: App, asker: Asker) -> Response:
    """List the Triton servers: addresses, state, versions loaded."""
    return json_answer(ServerList(items=[seen(server, asker) for server in services.servers.all()]))


@router.get("/{name}", operation_id="getServer", response_model=ServerStatus, responses=responses())
async def get_server(services: App, asker: Asker, name: ServerName) -> Response:
    """Return one Triton server."""
    return json_answer(seen(services.servers.get(name), asker))


@router.put(
    "/{name}/cordon",
    dependencies=[IDEMPOTENT],
    operation_id="cordonServer",
    response_model=Cordon,
    responses=responses(409),
)
async def cordon_server(services: App, name: ServerName, body: CordonRequest, actor: Actor) -> Response:
    """Let a server take no new replicas; with `drain`, move its replicas to other servers.

    Each replica that moves is loaded and proved on its new server before it is unloaded here, and its requests and
    sequences in flight end first. `GET /v1/servers/{name}` has the progress: `cordon.remaining` and `cordon.stuck`.
    A cordon stays until it is removed, also if all instances restart.
    """
    return json_answer(
        await services.servers.cordon(name, drain=body.drain, force=body.force, reason=body.reason, actor=actor)
    )


@router.delete(
    "/{name}/cordon",
    dependencies=[IDEMPOTENT],
    operation_id="uncordonServer",
    status_code=204,
    responses=responses(409),
)
async def uncordon_server(services: App, name: ServerName, actor: Actor) -> Response:
    """Let a server take new replicas again. Replicas that moved away do not come back by themselves."""
    await services.servers.uncordon(name, actor=actor)
    return Response(status_code=204)


@router.get("/{name}/drain-plan", operation_id="getDrainPlan", response_model=DrainPlanView, responses=responses())
async def get_drain_plan(
    services: App,
    name: ServerName,
    force: Annotated[bool, Query(description="Whether replicas without another place would be unloaded.")] = False,
) -> Response:
    """Return what the drain of a server would do: which replicas move where, and which would stay and why."""
    return json_answer(services.servers.drain_plan(name, force=force))


def seen(server: ServerStatus, asker: Principal | None) -> ServerStatus:
    """Remove the models that the caller may not see, also those named in a condition's message or a drain."""
    models = tuple(one for one in server.models if may_see(asker, one.model))
    complete = len(models) == len(server.models) and (asker is None or not asker.models)
    conditions = tuple(
        one if complete or one.type != ServerCondition.LOADS_STUCK else replace(one, message="")
        for one in server.conditions
    )
    cordon = server.cordon
    if cordon is not None and not complete:
        remaining = tuple(model for model in cordon.remaining if may_see(asker, model))
        stuck = {model: "" for model in cordon.stuck if may_see(asker, model)}  # the reasons name others
        cordon = cordon.model_copy(update={"remaining": remaining, "stuck": stuck})
    return server.model_copy(update={"models": models, "conditions": conditions, "cordon": cordon})
