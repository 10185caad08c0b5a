"""Conversions and validations."""

from fastapi import APIRouter, Response

from controlplane.api.answers import STARTS_OPERATION, accepted
from controlplane.api.dependencies import Actor, App, Asker, require_code
from controlplane.api.schemas.conversions import ConversionRequest
from controlplane.api.schemas.versions import ValidationRequest
from controlplane.domain.names import Reference
from controlplane.services.conversions import ConvertCommand
from controlplane.services.validation import ValidateCommand

router = APIRouter()


@router.post(
    "/conversions",
    tags=["conversions"],
    operation_id="convert",
    **STARTS_OPERATION,
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
        require_code(asker, "a conversion with trust or a factory, which runs the model's code,")
    fields = dict(body)
    fields.pop("target")
    return accepted(await services.conversions.start(ConvertCommand(actor=actor, **fields)))


@router.post(
    "/validations",
    tags=["validations"],
    operation_id="validate",
    **STARTS_OPERATION,
)
async def validate(services: App, body: ValidationRequest, actor: Actor, asker: Asker) -> Response:
    """Check an upload or a published version in the same way as a publish, without publishing it.

    A version's files are read from the bucket again and verified, and it is run on its golden samples' inputs.
    The operation succeeds when the checks are complete; `ok` in its result is true if they passed.
    """
    if asker is not None and body.reference is not None:
        asker.require_model(Reference.parse(body.reference).model)
    if body.trust:
        require_code(asker, "a validation with trust, which runs the model's code,")
    return accepted(await services.validation.start(ValidateCommand(actor=actor, asker=asker, **dict(body))))
