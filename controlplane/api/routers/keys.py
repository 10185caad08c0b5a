"""API keys: creation, look-up and revocation."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path, Response

from controlplane.api.answers import json_answer
from controlplane.api.dependencies import Actor, App
from controlplane.api.problems import responses
from controlplane.api.schemas.keys import KeyList, KeyRequestBody, KeyView, NewKey

router = APIRouter(prefix="/keys", tags=["keys"])

KeyId = Annotated[str, Path(description="The key's id or name.", max_length=64, examples=["3f9c1d27ab04"])]


@router.post("", operation_id="createKey", status_code=201, response_model=NewKey, responses=responses(409))
async def create_key(services: App, body: KeyRequestBody, actor: Actor) -> Response:
    """Make a key. Its secret is in this answer and nowhere else; an `Idempotency-Key` does not keep it.

    The first key has the scope `admin`; once it is there, every request needs a key.
    """
    key, secret = await services.keys.create(body.to_request(), actor=actor)
    answer = NewKey(key=KeyView.of(key, datetime.now(UTC)), secret=secret)
    return json_answer(answer, 201, {"Location": f"/v1/keys/{key.id}", "Cache-Control": "no-store"})


@router.get("", operation_id="listKeys", response_model=KeyList, responses=responses())
async def list_keys(services: App) -> Response:
    """List the keys, revoked and expired ones too, without their secrets."""
    now = datetime.now(UTC)
    return json_answer(KeyList(items=[KeyView.of(key, now) for key in await services.keys.all()]))


@router.get("/{key}", operation_id="getKey", response_model=KeyView, responses=responses())
async def get_key(services: App, key: KeyId) -> Response:
    """Return a key, without its secret."""
    return json_answer(KeyView.of(await services.keys.get(key), datetime.now(UTC)))


@router.delete("/{key}", operation_id="revokeKey", response_model=KeyView, responses=responses(409))
async def revoke_key(services: App, key: KeyId, actor: Actor) -> Response:
    """Revoke a key, for good: at once on this instance, and on the others once they look again (5 s, by default)."""
    return json_answer(KeyView.of(await services.keys.revoke(key, actor=actor), datetime.now(UTC)))
