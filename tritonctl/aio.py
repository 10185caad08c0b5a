"""The asynchronous client: the methods of `Client`, each of which runs in a thread while the event loop goes on."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from tritonctl.client import Client, connect

P = ParamSpec("P")
T = TypeVar("T")


def _in_thread(
    method: Callable[Concatenate[Client, P], T],
) -> "Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]":
    @wraps(method)
    async def run(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(method, self.sync, *args, **kwargs)

    return run


class AsyncClient:
    """A connection to one control plane for code in an event loop; it is an asynchronous context manager.

    The objects that it returns are those of `Client`. Their own methods block: use `AsyncClient.wait` instead of
    `Deployment.wait`, and `AsyncClient.deploy` instead of `Version.deploy`.

    Attributes:
        sync: The synchronous client behind it.
    """

    def __init__(self, sync: Client) -> None:
        self.sync = sync

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sync.close()

    push = _in_thread(Client.push)
    version = _in_thread(Client.version)
    models = _in_thread(Client.models)
    deploy = _in_thread(Client.deploy)
    deployment = _in_thread(Client.deployment)
    deployments = _in_thread(Client.deployments)
    undeploy = _in_thread(Client.undeploy)
    rollback = _in_thread(Client.rollback)
    wait = _in_thread(Client.wait)
    infer = _in_thread(Client.infer)
    compare = _in_thread(Client.compare)
    metrics = _in_thread(Client.metrics)


def connect_async(
    url: str | None = None,
    *,
    data_dir: str | Path | None = None,
    api_key: str | None = None,
    progress: bool = False,
    **options: Any,
) -> AsyncClient:
    """Return an asynchronous client; the arguments are those of `connect`."""
    return AsyncClient(connect(url, data_dir=data_dir, api_key=api_key, progress=progress, **options))
