"""One server for the session; each test loads models under names of its own and leaves none behind."""

from collections.abc import AsyncIterator

import pytest
from tritonclient.grpc.aio import InferenceServerClient

from tests.support.triton import RunningTriton
from tests.support.triton_serving import Serving


@pytest.fixture
async def serving(triton: RunningTriton) -> AsyncIterator[Serving]:
    serving = Serving(triton.server, triton.repository, triton.client())
    yield serving
    # Not our client: it waits until the processes are gone, a second that no other test needs to wait for.
    async with InferenceServerClient(triton.server.grpc_url) as control:
        for name in serving.names:
            await control.unload_model(name)
            triton.repository.remove_model(name)
    await serving.client.close()
