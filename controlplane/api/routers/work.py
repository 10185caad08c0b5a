"""Conversions and validations."""

from fastapi import APIRouter, Response

from controlplane.api.answers import accepted
from controlplane.api.dependencies import Actor, App, IdempotencyKey
from controlplane.api.problems import responses
from controlplane.api.schemas.conversions import ConversionRequest
from controlplane.api.schemas.versions import ValidationRequest
from controlplane.services.conversions import ConvertCommand
from controlplane.services.operations import Operation
from controlplane.services.validation import ValidateCommand

router = APIRouter()

_STARTED = {202: {"description": "Started; follow the operation"}}


@router.post(
    "/conversions",
    tags=["conversions"],
    operation_id="convert",
    status_code=202,
    response_model=Operation,
    responses={**_STARTED, **responses(409)},
)
async def convert(services: App, body: ConversionRequest, actor: Actor, key: IdempotencyKey = None) -> Response:
    """Convert a version, compare it with the original on samples, and publish it if it agrees.

    The operation's result has `model`, `version`, `reference`, `parity` and `warnings`.
    """
    fields = dict(body)
    fields.pop("target")
    return accepted(await services.conversions.start(ConvertCommand(actor=actor, **fields)))


@router.post(
    "/validations",
    tags=["validations"],
    operation_id="validate",
    status_code=202,
    response_model=Operation,
    responses={**_STARTED, **responses(409)},
)
async def validate(services: App, body: ValidationRequest, actor: Actor, key: IdempotencyKey = None) -> Response:
    """Check an upload as a publish would, and publish nothing.

    The operation succeeds when the checks were made; its result says in `ok` whether they passed.
    """
    return accepted(await services.validation.start(ValidateCommand(actor=actor, **dict(body))))
