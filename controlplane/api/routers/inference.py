"""Inference through the control plane, for people and scripts. Programs use Triton's own ports."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from controlplane.api.answers import json_answer
from controlplane.api.dependencies import App, ModelName
from controlplane.api.problems import responses
from controlplane.api.schemas.inference import InferenceRequest, InferenceResponse, ResponseTensor
from controlplane.services.large_json import LARGE_BYTES
from controlplane.services.tensors import InputTensor

router = APIRouter(prefix="/deployments/{model}/infer", tags=["inference"])


@router.post("", operation_id="infer", response_model=InferenceResponse, responses=responses(409, 413, 504))
async def infer(
    services: App,
    request: Request,
    model: ModelName,
    body: InferenceRequest,
    version: Annotated[
        int | None, Query(ge=1, le=999_999_999, description="A loaded version; null: the active version.")
    ] = None,
    timeout: Annotated[  # noqa: ASYNC109 - becomes the deadline of the call to Triton
        float, Query(gt=0, le=600, allow_inf_nan=False, description="Deadline in seconds.")
    ] = 30.0,
) -> Response:
    """Send an inference request to a deployed model, in the JSON of the v2 inference protocol."""
    data = request.scope.get("controlplane.data") or [tensor.data for tensor in body.inputs]
    answer = await services.inference.infer(
        model,
        [InputTensor(one.name, one.datatype, one.shape, read) for one, read in zip(body.inputs, data, strict=True)],
        outputs=[output.name for output in body.outputs] if body.outputs is not None else None,
        version=version,
        timeout_seconds=timeout,
    )
    response = InferenceResponse(
        model_name=model,
        model_version=str(answer.version),
        id=body.id,
        server=answer.server,
        seconds=answer.seconds,
        outputs=[],
    )
    if answer.bytes >= LARGE_BYTES:
        document = response.model_dump(mode="json", exclude={"outputs"})
        return json_answer(await services.large_json.render(document, list(answer.tensors.items())))
    outputs = [
        ResponseTensor(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape, data=tensor.data)
        for tensor in answer.written()
    ]
    return json_answer(response.model_copy(update={"outputs": outputs}))
