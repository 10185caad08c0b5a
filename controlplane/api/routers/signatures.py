"""Signatures of versions."""

from fastapi import APIRouter, Response

from controlplane.api.answers import json_answer
from controlplane.api.dependencies import IDEMPOTENT, App, ModelName, VersionSelector
from controlplane.api.problems import responses
from controlplane.api.schemas.signatures import SignatureList, SignatureRequest, SignatureView

router = APIRouter(prefix="/models/{model}/versions/{version}/signatures", tags=["versions"])


@router.post(
    "",
    dependencies=[IDEMPOTENT],
    operation_id="addSignature",
    status_code=201,
    response_model=SignatureView,
    responses=responses(409),
)
async def add_signature(services: App, model: ModelName, version: VersionSelector, body: SignatureRequest) -> Response:
    """Store a signature of a version. If there are trusted keys, a signature that they do not verify is refused."""
    return json_answer(SignatureView.of(await services.versions.sign(model, version, body.document())), 201)


@router.get("", operation_id="listSignatures", response_model=SignatureList, responses=responses())
async def list_signatures(services: App, model: ModelName, version: VersionSelector) -> Response:
    """Return a version's signatures, each checked with the trusted keys, and the version's staged copies."""
    staged = await services.versions.staged(model, version)
    items = [SignatureView.of(one) for one in await services.versions.signatures(model, version)]
    required = services.versions.signatures_required
    return json_answer(
        SignatureList(required=required, verified=any(one.good for one in items), items=items, staged=staged)
    )
