"""Models and aliases."""

from typing import Annotated

from fastapi import APIRouter, Path, Response

from controlplane.api.answers import json_answer
from controlplane.api.dependencies import (
    Actor,
    App,
    Asker,
    Cursor,
    Limit,
    ModelName,
    ReasonQuery,
    decode_cursor,
    decode_number_cursor,
    encode_cursor,
    may_see,
)
from controlplane.api.problems import responses
from controlplane.api.query import LabelFilter, NameFilter, labels_of, name_matches
from controlplane.api.schemas.models import Alias, AliasList, AliasTarget, Change, ChangePage, ModelChange, ModelPage
from controlplane.domain.model import ModelHead

router = APIRouter(prefix="/models")

AliasPath = Annotated[str, Path(description="The alias.", examples=["champion"])]


@router.get("", tags=["models"], operation_id="listModels", response_model=ModelPage, responses=responses())
async def list_models(
    services: App,
    asker: Asker,
    name: NameFilter = None,
    label: LabelFilter = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Response:
    """List the models that are not deleted, by name; for a key that is limited to some models, only those.

    A filter is applied to each page, so a page can have fewer items than `limit`: continue while there is a
    `next_cursor`.
    """
    labels = labels_of(label)
    models = await services.models.page(after=decode_cursor(cursor), limit=limit + 1)
    more = encode_cursor(models[limit - 1].name) if len(models) > limit else None
    shown = [model for model in models[:limit] if may_see(asker, model.name)]
    shown = [
        model
        for model in shown
        if name_matches(name, model.name) and all(model.labels.get(key) == value for key, value in labels)
    ]
    return json_answer(ModelPage(items=shown, next_cursor=more))


@router.get("/{model}", tags=["models"], operation_id="getModel", response_model=ModelHead, responses=responses())
async def get_model(services: App, model: ModelName) -> Response:
    """Return a model with its versions and aliases."""
    return json_answer(services.models.peek_json(model) or await services.models.get_json(model))


@router.put(
    "/{model}",
    tags=["models"],
    operation_id="putModel",
    response_model=ModelHead,
    responses={201: {"model": ModelHead, "description": "Created"}, **responses(409)},
)
async def put_model(services: App, model: ModelName, body: ModelChange, actor: Actor) -> Response:
    """Create or change a model. Publishing a version also creates its model."""
    head, created = await services.models.put(
        model, description=body.description, labels=body.labels, actor=actor, reason=body.reason
    )
    return json_answer(head, 201 if created else 200)


@router.patch(
    "/{model}", tags=["models"], operation_id="patchModel", response_model=ModelHead, responses=responses(409)
)
async def patch_model(services: App, model: ModelName, body: ModelChange, actor: Actor) -> Response:
    """Change a model's description or labels."""
    return json_answer(
        await services.models.update(
            model, description=body.description, labels=body.labels, actor=actor, reason=body.reason
        )
    )


@router.delete("/{model}", tags=["models"], operation_id="deleteModel", status_code=204, responses=responses(409))
async def delete_model(services: App, model: ModelName, actor: Actor, reason: ReasonQuery = "") -> None:
    """Delete a model with all its versions. Refused while it is deployed."""
    await services.models.delete(model, actor=actor, reason=reason)


@router.get(
    "/{model}/history",
    tags=["models"],
    operation_id="getModelHistory",
    response_model=ChangePage,
    responses=responses(),
)
async def get_history(services: App, model: ModelName, cursor: Cursor = None, limit: Limit = 20) -> ChangePage:
    """Return the revisions of a model (author, time, reason), newest first; also for a deleted model."""
    revisions = await services.models.history(model, before=decode_number_cursor(cursor), limit=limit + 1)
    more = encode_cursor(str(revisions[limit - 1].number)) if len(revisions) > limit else None
    return ChangePage(
        items=[
            Change(
                number=revision.number,
                at=revision.at,
                actor=revision.actor,
                reason=revision.reason,
                commit_id=revision.commit_id,
                body=revision.body,
            )
            for revision in revisions[:limit]
        ],
        next_cursor=more,
    )


@router.get(
    "/{model}/aliases", tags=["aliases"], operation_id="listAliases", response_model=AliasList, responses=responses()
)
async def list_aliases(services: App, model: ModelName) -> AliasList:
    """List a model's aliases."""
    head = await services.models.get(model)
    return AliasList(
        items=[Alias(model=head.name, alias=name, version=number) for name, number in sorted(head.aliases.items())]
    )


@router.get(
    "/{model}/aliases/{alias}", tags=["aliases"], operation_id="getAlias", response_model=Alias, responses=responses()
)
async def get_alias(services: App, model: ModelName, alias: AliasPath) -> Alias:
    """Return which version an alias points to."""
    entry = await services.versions.select(model, f"@{alias}")
    return Alias(model=model, alias=alias, version=entry.number)


@router.put(
    "/{model}/aliases/{alias}",
    tags=["aliases"],
    operation_id="putAlias",
    response_model=Alias,
    responses=responses(409),
)
async def put_alias(services: App, model: ModelName, alias: AliasPath, body: AliasTarget, actor: Actor) -> Alias:
    """Point an alias to a version. A deployment that follows this alias is updated."""
    await services.models.set_alias(model, alias, body.version, actor=actor, reason=body.reason)
    return Alias(model=model, alias=alias, version=body.version)


@router.delete(
    "/{model}/aliases/{alias}", tags=["aliases"], operation_id="deleteAlias", status_code=204, responses=responses(409)
)
async def delete_alias(
    services: App,
    model: ModelName,
    alias: AliasPath,
    actor: Actor,
    reason: ReasonQuery = "",
) -> None:
    """Remove an alias."""
    await services.models.remove_alias(model, alias, actor=actor, reason=reason)
