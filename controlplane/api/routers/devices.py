"""GPUs, MIG instances and hosts."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from controlplane.api.answers import json_answer
from controlplane.api.dependencies import App
from controlplane.api.problems import responses
from controlplane.api.schemas.devices import DeviceList

router = APIRouter()


@router.get(
    "/devices", tags=["servers"], operation_id="listDevices", response_model=DeviceList, responses=responses(404)
)
async def list_devices(
    services: App,
    server: Annotated[str | None, Query(max_length=200, description="Only devices of this server.")] = None,
) -> Response:
    """Read the current state of the servers' devices: memory, budget, processes that use it, health.

    A device or a server that cannot be read is returned with its `error` and its last known state.
    """
    found = await services.devices.all() if server is None else (await services.devices.of(server),)
    return json_answer(DeviceList(items=list(found)))
