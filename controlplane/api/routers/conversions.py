"""Conversions and validations."""

from fastapi import APIRouter, Response

from controlplane.api.answers import accepted
from controlplane.api.dependencies import IDEMPOTENT, Actor, App, Asker, require_code
from controlplane.api.problems import Documented, responses
from controlplane.api.schemas.conversions import ConversionRequest
from controlplane.api.schemas.versions import ValidationRequest
from controlplane.domain.names import Reference
from controlplane.services.conversions import ConvertCommand
from controlplane.services.operations import Operation
from controlplane.services.validation import ValidateCommand

router = APIRouter()

_STARTED: Documented = {202: {"description": "Started; follow the operation"}}


@router.post(
    "/conversions",
    tags=["conversions"],
    dependencies=[IDEMPOTENT],
    operation_id="convert",
    status_code=202,
    response_model=Operation,
    responses=responses(409, also=_STARTED),
)
async def convert(services: App, body: ConversionRequest, actor: Actor, asker: Asker) -> Response:
    """Convert a version, compare it with the original on samples, and publish it if it agrees.

    The operation's result has `model`, `version`, `reference`, `parity` and `warnings`.
    """
    if asker is not None:
        source = Reference.parse(body.source).model
        asker.require_model(source)
        asker.require_model(body.model or source)
    if body.options is not None and (body.options.trust or body.options.factory):
        require_code(asker, "a conversion with trust or a factory, which runs code of the model")
    fields = dict(body)
    fields.pop("target")
    return accepted(await services.conversions.start(ConvertCommand(actor=actor, **fields)))


@router.post(
    "/validations",
    tags=["validations"],
    dependencies=[IDEMPOTENT],
    operation_id="validate",
    status_code=202,
    response_model=Operation,
    responses=responses(409, also=_STARTED),
)
async def validate(services: App, body: ValidationRequest, actor: Actor, asker: Asker) -> Response:
    """Check an upload, or a published version, as a publish would; publish nothing.

    A version's files are read from the bucket again and verified, and it is run on its golden samples' inputs.
    The operation succeeds when the checks were made; its result says in `ok` whether they passed.
    """
    if asker is not None and body.reference is not None:
        asker.require_model(Reference.parse(body.reference).model)
    if body.trust:
        require_code(asker, "a validation with trust, which runs code of the model")
    return accepted(await services.validation.start(ValidateCommand(actor=actor, asker=asker, **dict(body))))
