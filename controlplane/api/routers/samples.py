"""Golden samples that were recorded after the publication, from the answers of a deployed version."""

from typing import Annotated

from fastapi import APIRouter, Path, Response

from controlplane.api.answers import json_answer
from controlplane.api.dependencies import Actor, App, ModelName, VersionSelector
from controlplane.api.problems import responses
from controlplane.api.schemas.samples import (
    AddSamplesRequest,
    RecordedSampleList,
    RecordedSamples,
    RecordTrafficRequest,
)
from controlplane.services.samples import RecordResult
from controlplane.services.tensors import InputTensor

router = APIRouter(tags=["versions"])

RecordId = Annotated[str, Path(pattern=r"^[a-z0-9-]{1,64}$", description="The record's id.", examples=["3f2c91ab"])]


@router.get(
    "/models/{model}/versions/{version}/recorded-samples",
    operation_id="listRecordedSamples",
    response_model=RecordedSampleList,
    responses=responses(),
)
async def list_recorded_samples(services: App, model: ModelName, version: VersionSelector) -> Response:
    """List the golden samples of a version that were recorded after its publication."""
    number, records = await services.samples.records(model, version)
    return json_answer(RecordedSampleList(version=number, items=records))


@router.delete(
    "/models/{model}/versions/{version}/recorded-samples/{record}",
    operation_id="deleteRecordedSamples",
    status_code=204,
    responses=responses(),
)
async def delete_recorded_samples(services: App, model: ModelName, version: VersionSelector, record: RecordId) -> None:
    """Delete recorded samples: later proofs do not compare with them."""
    await services.samples.remove(model, version, record)


@router.post(
    "/deployments/{model}/samples",
    operation_id="addSamples",
    response_model=RecordedSamples,
    responses=responses(409, 504),
)
async def add_samples(services: App, model: ModelName, body: AddSamplesRequest, actor: Actor) -> Response:
    """Send inputs to the deployed version, and record its answers as golden samples.

    Each input is sent twice; it is left out if the answers differ.
    """
    requests = [[InputTensor(t.name, t.datatype, t.shape, t.data) for t in one.inputs] for one in body.samples]
    return _answer(await services.samples.add(model, requests, actor=actor))


@router.post(
    "/deployments/{model}/samples/record",
    operation_id="recordTraffic",
    response_model=RecordedSamples,
    responses=responses(409, 504),
)
async def record_traffic(services: App, model: ModelName, actor: Actor, body: RecordTrafficRequest) -> Response:
    """Record the next requests of clients through this instance's gateway as golden samples.

    The answer comes when enough different requests have passed, or the time is up. Their inputs are kept in the store.
    """
    found = await services.samples.record(model, count=body.count, seconds=body.seconds, actor=actor)
    return _answer(found)


def _answer(found: RecordResult) -> Response:
    return json_answer(
        RecordedSamples(model=found.model, version=found.version, record=found.record, skipped=found.skipped)
    )
