"""The control plane for NVIDIA Triton from Python: publish, deploy, infer, compare and roll back.

::

    import tritonctl

    client = tritonctl.connect()
    version = client.push(model, "digits", example_inputs)
    version.deploy().wait()
    client.infer("digits", {"x": images})

`Client` is the synchronous face, `AsyncClient` the asynchronous one with the same methods. Every error is a
`ControlPlaneError`; the tree is in `controlplane.errors`.
"""

from controlplane.client.errors import (
    ClientError,
    NotRunningError,
    OperationFailedError,
    WaitTimeoutError,
)
from controlplane.errors import (
    AccessError,
    ConflictError,
    ControlPlaneError,
    ConversionFailedError,
    InvalidInputError,
    NotFoundError,
    ParityError,
    StoreError,
    TritonError,
)
from tritonctl.aio import AsyncClient, connect_async
from tritonctl.client import Client, connect
from tritonctl.results import Comparison, Deployment, Metrics, Plot, Version

__all__ = [
    "AccessError",
    "AsyncClient",
    "Client",
    "ClientError",
    "Comparison",
    "ConflictError",
    "ControlPlaneError",
    "ConversionFailedError",
    "Deployment",
    "InvalidInputError",
    "Metrics",
    "NotFoundError",
    "NotRunningError",
    "OperationFailedError",
    "ParityError",
    "Plot",
    "StoreError",
    "TritonError",
    "Version",
    "WaitTimeoutError",
    "connect",
    "connect_async",
]
