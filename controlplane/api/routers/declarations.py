"""Declared state: documents that say what is to exist."""

from fastapi import APIRouter, Response

from controlplane.api.answers import json_answer
from controlplane.api.dependencies import Actor, App, Asker
from controlplane.api.problems import responses
from controlplane.api.schemas.declarations import ApplyRequest, DifferenceList
from controlplane.api.schemas.memory import DryRun
from controlplane.domain.declaration import Action

router = APIRouter(prefix="/apply", tags=["declarations"])


@router.post("", operation_id="apply", response_model=DifferenceList, responses=responses(409))
async def apply(services: App, body: ApplyRequest, actor: Actor, asker: Asker, dry_run: DryRun = False) -> Response:
    """Make models, aliases, API keys and deployments what the documents declare; repeating it changes nothing.

    If a document is refused, nothing is changed. A deployment that a rollout or a rollback changed since the same
    document was applied is kept, unless `force` is set. With `prune`, deployments of the set without a document are
    undeployed. The secret of a new API key is only in this response. With `dry_run` nothing changes: the response has
    the differences, and the reason for each document that would be refused.
    """
    wanted = body.to_declaration()
    if dry_run:
        found = await services.declarations.compare(wanted, asker=asker)
    else:
        found = await services.declarations.apply(wanted, actor=actor, asker=asker)
    result = DifferenceList(
        items=found,
        changed=sum(one.differs for one in found),
        refused=sum(one.action is Action.REFUSED for one in found),
    )
    return json_answer(result, 200, {"Cache-Control": "no-store"})
