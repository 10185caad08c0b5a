"""Inference through the control plane: for people and scripts. Programs talk to Triton's own ports."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from controlplane.api.answers import json_answer
from controlplane.api.dependencies import App, ModelName
from controlplane.api.problems import responses
from controlplane.api.schemas.inference import InferenceRequest, InferenceResponse, ResponseTensor
from controlplane.services.tensors import InputTensor

router = APIRouter(prefix="/deployments/{model}/infer", tags=["inference"])


@router.post("", operation_id="infer", response_model=InferenceResponse, responses=responses(409, 413, 504))
async def infer(
    services: App,
    model: ModelName,
    body: InferenceRequest,
    version: Annotated[
        int | None, Query(ge=1, le=999_999_999, description="A loaded version; null: the one that answers.")
    ] = None,
    timeout: Annotated[  # noqa: ASYNC109 - becomes the deadline of the call to Triton
        float, Query(gt=0, le=600, allow_inf_nan=False, description="Deadline in seconds.")
    ] = 30.0,
) -> Response:
    """Ask a deployed model, in the JSON of the v2 inference protocol."""
    answer = await services.inference.infer(
        model,
        [InputTensor(tensor.name, tensor.datatype, tensor.shape, tensor.data) for tensor in body.inputs],
        outputs=[output.name for output in body.outputs] if body.outputs is not None else None,
        version=version,
        timeout_seconds=timeout,
    )
    return json_answer(
        InferenceResponse(
            model_name=model,
            model_version=str(answer.version),
            id=body.id,
            server=answer.server,
            seconds=answer.seconds,
            outputs=[
                ResponseTensor(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape, data=tensor.data)
                for tensor in answer.outputs
            ],
        )
    )
