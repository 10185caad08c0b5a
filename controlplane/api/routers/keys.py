"""API keys: creation, look-up and revocation."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path, Response

from controlplane.api.answers import json_answer
from controlplane.api.dependencies import Actor, App
from controlplane.api.problems import responses
from controlplane.api.schemas.keys import KeyList, KeyRequestBody, KeyView, NewKey

router = APIRouter(prefix="/keys", tags=["keys"])

KeyId = Annotated[str, Path(description="The key's ID or name.", max_length=64, examples=["3f9c1d27ab04"])]


@router.post("", operation_id="createKey", status_code=201, response_model=NewKey, responses=responses(409))
async def create_key(services: App, body: KeyRequestBody, actor: Actor) -> Response:
    """Create a key. Only this response contains its secret; it is not stored with an `Idempotency-Key`.

    The first key must have the scope `admin`; once it exists, every request needs a key.
    """
    key, secret = await services.keys.create(body.to_request(), actor=actor)
    answer = NewKey(key=KeyView.of(key, datetime.now(UTC)), secret=secret)
    return json_answer(answer, 201, {"Location": f"/v1/keys/{key.id}", "Cache-Control": "no-store"})


@router.get("", operation_id="listKeys", response_model=KeyList, responses=responses())
async def list_keys(services: App) -> Response:
    """List the keys without their secrets, including revoked and expired ones."""
    now = datetime.now(UTC)
    return json_answer(KeyList(items=[KeyView.of(key, now) for key in await services.keys.all()]))


@router.get("/{key}", operation_id="getKey", response_model=KeyView, responses=responses())
async def get_key(services: App, key: KeyId) -> Response:
    """Return a key, without its secret."""
    return json_answer(KeyView.of(await services.keys.get(key), datetime.now(UTC)))


@router.delete("/{key}", operation_id="revokeKey", response_model=KeyView, responses=responses(409))
async def revoke_key(services: App, key: KeyId, actor: Actor) -> Response:
    """Revoke a key permanently: at once on this instance, and on the others at their next refresh (5 s by default)."""
    return json_answer(KeyView.of(await services.keys.revoke(key, actor=actor), datetime.now(UTC)))
