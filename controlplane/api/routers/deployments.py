"""Deployments: the desired state of models."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Response

from controlplane.api.answers import json_answer
from controlplane.api.dependencies import (
    IDEMPOTENT,
    Actor,
    App,
    Asker,
    Cursor,
    Limit,
    ModelName,
    ReasonQuery,
    Wait,
    decode_cursor,
    decode_number_cursor,
    encode_cursor,
    may_see,
)
from controlplane.api.problems import Documented, responses
from controlplane.api.query import LabelFilter, NameFilter, labels_of
from controlplane.api.schemas.deployments import (
    DeploymentPage,
    DeploymentRevision,
    DeployRequest,
    RevisionPage,
    RollbackRequest,
    StateRequest,
)
from controlplane.api.schemas.memory import LOADED_OR_PLANNED, PLANNED, DryRun
from controlplane.domain.conditions import Awaited
from controlplane.domain.states import Phase
from controlplane.services.deployments import Deployment, DeploymentFilter, DeploymentHealth
from controlplane.services.exporting import RepositoryEntry

router = APIRouter(prefix="/deployments", tags=["deployments"])

_ACCEPTED: Documented = {202: {"description": "Recorded; the reconciler is working on it. Follow `operation_id`."}}


def _accepted(deployment: Deployment) -> Response:
    return json_answer(deployment, 202, {"Location": f"/v1/operations/{deployment.operation_id}"})


@router.get("", operation_id="listDeployments", response_model=DeploymentPage, responses=responses())
async def list_deployments(
    services: App,
    asker: Asker,
    name: NameFilter = None,
    phase: Annotated[
        list[Phase] | None, Query(description="Only deployments in this phase, or in one of these phases.")
    ] = None,
    server: Annotated[str | None, Query(max_length=256, description="Only deployments on this server.")] = None,
    label: LabelFilter = None,
    q: Annotated[str | None, Query(max_length=128, description="Only models whose name contains this.")] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Response:
    """List the deployments with their status, by model; for a key that is limited to some models, only those.

    All filters must match. A page has `limit` items unless it is the last one.
    """
    wanted = DeploymentFilter(
        name=name,
        q=q,
        labels=labels_of(label),
        phases=None if phase is None else frozenset(phase),
        server=server,
    )
    items, last = await services.deployments.page(
        after=decode_cursor(cursor), limit=limit, wanted=wanted, sees=partial(may_see, asker)
    )
    return json_answer(DeploymentPage(items=items, next_cursor=None if last is None else encode_cursor(last)))


@router.put(
    "/{model}",
    operation_id="deploy",
    status_code=202,
    response_model=Deployment,
    responses=responses(409, also={**_ACCEPTED, **PLANNED}),
)
async def deploy(
    services: App, model: ModelName, body: DeployRequest, actor: Actor, asker: Asker, dry_run: DryRun = False
) -> Response:
    """Set the version that is active under the model's name. Each change is a revision.

    The version is loaded beside the active one, proved with its golden samples, and then becomes active; a version that
    fails its proof does not. If the same content has a passed proof on record, the version becomes active first and is
    proved then; if that proof fails, the previous version is active again.

    Repeating the request changes nothing. Settings that Triton would refuse are not recorded. Settings that can make
    Triton load code or files need a key with the scope `code`.

    With `dry_run` nothing changes: the response reports what would be evicted, how many bytes are transferred, how
    long it would take and why, whether there is a gap without an active version, or why the deployment is impossible.
    """
    if dry_run:
        return json_answer(await services.memory.plan_deploy(model, body.reference, body.settings, asker=asker))
    return _accepted(
        await services.deployments.put(
            model, body.reference, settings=body.settings, actor=actor, asker=asker, reason=body.reason
        )
    )


@router.get("/{model}", operation_id="getDeployment", response_model=Deployment, responses=responses())
async def get_deployment(services: App, model: ModelName) -> Response:
    """Return a deployment with its status, and the memory it has on each server."""
    return json_answer(await services.deployments.get(model))


@router.delete(
    "/{model}",
    operation_id="undeploy",
    status_code=202,
    response_model=Deployment,
    responses=responses(409, also=_ACCEPTED),
)
async def undeploy(
    services: App,
    model: ModelName,
    actor: Actor,
    reason: ReasonQuery = "",
) -> Response:
    """Unload the model everywhere and remove its deployment. Its revisions stay."""
    return _accepted(await services.deployments.delete(model, actor=actor, reason=reason))


@router.get(
    "/{model}/revisions", operation_id="listDeploymentRevisions", response_model=RevisionPage, responses=responses()
)
async def list_revisions(services: App, model: ModelName, cursor: Cursor = None, limit: Limit = 20) -> RevisionPage:
    """Return a deployment's revisions, newest first: who, when, why, what."""
    revisions = await services.deployments.history(model, before=decode_number_cursor(cursor), limit=limit + 1)
    more = encode_cursor(str(revisions[limit - 1].number)) if len(revisions) > limit else None
    return RevisionPage(
        items=[
            DeploymentRevision(
                number=revision.number,
                at=revision.at,
                actor=revision.actor,
                reason=revision.reason,
                spec=revision.spec,
            )
            for revision in revisions[:limit]
        ],
        next_cursor=more,
    )


@router.post(
    "/{model}/rollback",
    dependencies=[IDEMPOTENT],
    operation_id="rollback",
    status_code=202,
    response_model=Deployment,
    responses=responses(409, also=_ACCEPTED),
)
async def rollback(
    services: App, model: ModelName, actor: Actor, asker: Asker, body: RollbackRequest | None = None
) -> Response:
    """Roll back to the previous or a named revision. Takes milliseconds while the old version is in its bake window."""
    asked = body or RollbackRequest()
    return _accepted(
        await services.deployments.rollback(
            model, revision=asked.revision, actor=actor, asker=asker, reason=asked.reason
        )
    )


@router.post(
    "/{model}/load",
    dependencies=[IDEMPOTENT],
    operation_id="loadDeployment",
    status_code=202,
    response_model=Deployment,
    responses=responses(409, also={**_ACCEPTED, **LOADED_OR_PLANNED}),
)
async def load(
    services: App,
    model: ModelName,
    actor: Actor,
    body: StateRequest | None = None,
    wait: Wait = 0.0,
    dry_run: DryRun = False,
) -> Response:
    """Load a deployed model: after an unload, after an eviction, or at its first use.

    Each call counts as a use, and concurrent calls share one load. The eviction policy makes room for it.
    With `wait`, the response is sent when the model is active (200) or cannot be loaded (`insufficient-memory` with
    figures, or `deployment-failed`); if the time expires first, it is 202 and the load continues. With `dry_run`
    nothing changes: the response is the plan.
    """
    if dry_run:
        return json_answer(await services.memory.plan_load(model))
    deployment, answers = await services.memory.load(
        model, wait_seconds=wait, actor=actor, reason=body.reason if body else ""
    )
    return json_answer(deployment) if answers and wait > 0 else _accepted(deployment)


@router.post(
    "/{model}/unload",
    dependencies=[IDEMPOTENT],
    operation_id="unloadDeployment",
    status_code=202,
    response_model=Deployment,
    responses=responses(409, also=_ACCEPTED),
)
async def unload(services: App, model: ModelName, actor: Actor, body: StateRequest | None = None) -> Response:
    """Unload a deployed model and keep the deployment."""
    return _accepted(
        await services.deployments.set_loaded(model, loaded=False, actor=actor, reason=body.reason if body else "")
    )


@router.get(
    "/{model}/health", operation_id="getDeploymentHealth", response_model=DeploymentHealth, responses=responses()
)
async def health(services: App, model: ModelName) -> Response:
    """Return the newest probes on each server, with their latency, the drift of the outputs, and faults."""
    return json_answer(await services.deployments.health(model))


@router.get(
    "/{model}/repository", operation_id="getRepositoryEntry", response_model=RepositoryEntry, responses=responses()
)
async def repository_entry(services: App, model: ModelName) -> Response:
    """Return the deployment as a folder of a plain Triton model repository.

    A Triton without a control plane serves the folder. Its configuration is the one that is loaded here, without the
    control plane's parameters and without the GPUs of the placement. Files with a `source` are downloaded from the
    version: `/v1/models/{model}/versions/{version}/files/{source}`.
    """
    return json_answer(await services.exporting.entry(model))


@router.get("/{model}/wait", operation_id="waitForDeployment", response_model=Deployment, responses=responses())
async def wait(
    services: App,
    model: ModelName,
    timeout: Annotated[  # noqa: ASYNC109 - the client chooses it, and gets the state at that time
        float, Query(ge=0, le=600, allow_inf_nan=False, description="Maximum seconds to wait.")
    ] = 60.0,
    for_: Annotated[
        str | None,
        Query(
            alias="for",
            max_length=64,
            description="What to wait for: a condition (`Ready`, `Healthy`, `condition=Degraded=False`) or "
            "`unloaded`; default: any settled phase.",
            examples=["Ready"],
        ),
    ] = None,
) -> Response:
    """Wait until the newest revision is Ready, Degraded, Failed or Unloaded, or for a condition.

    The response is the deployment at that time, also if the time expires first: its conditions show which it was.
    """
    awaited = Awaited.parse(for_) if for_ is not None else None
    return json_answer(await services.deployments.wait(model, seconds=timeout, awaited=awaited))
