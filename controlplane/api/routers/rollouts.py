"""Rollouts by evidence, which replace the active version by a new one."""

from fastapi import APIRouter, Response

from controlplane.api.answers import json_answer
from controlplane.api.dependencies import (
    IDEMPOTENT,
    Actor,
    App,
    Asker,
    Cursor,
    Limit,
    ModelName,
    decode_cursor,
    encode_cursor,
    may_see,
)
from controlplane.api.problems import responses
from controlplane.api.schemas.rollouts import RolloutPage, RolloutRequest
from controlplane.services.rollout_view import RolloutView

router = APIRouter(prefix="/rollouts", tags=["rollouts"])


@router.get("", operation_id="listRollouts", response_model=RolloutPage, responses=responses())
async def list_rollouts(services: App, asker: Asker, cursor: Cursor = None, limit: Limit = 100) -> Response:
    """List the newest rollout of every deployment that has one, in progress or ended, by model.

    For a key that is limited to some models, only those.
    """
    items = await services.rollouts.page(after=decode_cursor(cursor), limit=limit + 1)
    more = encode_cursor(items[limit - 1].model) if len(items) > limit else None
    shown = [item for item in items[:limit] if may_see(asker, item.model)]
    return json_answer(RolloutPage(items=shown, next_cursor=more))


@router.get("/{model}", operation_id="getRollout", response_model=RolloutView, responses=responses())
async def get_rollout(services: App, model: ModelName) -> Response:
    """Return a model's rollout: step and weight, figures of both versions, results of the statistical tests.

    A rollout begins when a version is deployed whose settings name a strategy other than `update_strategy`. Every
    decision is a revision of the deployment, with its figures as the reason.
    """
    return json_answer(await services.rollouts.get(model))


@router.post(
    "/{model}/promote",
    dependencies=[IDEMPOTENT],
    operation_id="promoteRollout",
    response_model=RolloutView,
    responses=responses(409),
)
async def promote(services: App, model: ModelName, actor: Actor, body: RolloutRequest | None = None) -> Response:
    """Make the new version active now, regardless of the measurements."""
    return json_answer(await services.rollouts.promote(model, actor=actor, reason=body.reason if body else ""))


@router.post(
    "/{model}/abort",
    dependencies=[IDEMPOTENT],
    operation_id="abortRollout",
    response_model=RolloutView,
    responses=responses(409),
)
async def abort(services: App, model: ModelName, actor: Actor, body: RolloutRequest | None = None) -> Response:
    """Withdraw the new version now. The old one is still loaded and receives all further requests."""
    return json_answer(await services.rollouts.abort(model, actor=actor, reason=body.reason if body else ""))


@router.post(
    "/{model}/pause",
    dependencies=[IDEMPOTENT],
    operation_id="pauseRollout",
    response_model=RolloutView,
    responses=responses(409),
)
async def pause(services: App, model: ModelName, actor: Actor, body: RolloutRequest | None = None) -> Response:
    """Keep a rollout at its current step. A version that proves to be worse is withdrawn even so."""
    reason = body.reason if body else ""
    return json_answer(await services.rollouts.pause(model, pause=True, actor=actor, reason=reason))


@router.post(
    "/{model}/resume",
    dependencies=[IDEMPOTENT],
    operation_id="resumeRollout",
    response_model=RolloutView,
    responses=responses(409),
)
async def resume(services: App, model: ModelName, actor: Actor, body: RolloutRequest | None = None) -> Response:
    """Resume a paused rollout."""
    reason = body.reason if body else ""
    return json_answer(await services.rollouts.pause(model, pause=False, actor=actor, reason=reason))
