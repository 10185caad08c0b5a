"""A control plane in a process of its own that tunes a model until it is killed.

Run as ``python -m tests.tuning.child FOLDER GRPC_URL REPOSITORY MODEL``.
"""

import asyncio
import sys
from pathlib import Path

from controlplane.app import ControlPlane, build
from controlplane.services.tuning.service import TuneCommand
from controlplane.settings import ApiSettings, ReconcilerSettings, Settings, TritonServerSettings, TritonSettings


def plane_on(folder: Path, grpc_url: str, repository: Path) -> ControlPlane:
    """A control plane with an external Triton server, as in production."""
    server = TritonServerSettings(name="elsewhere", grpc_url=grpc_url, repository=repository)
    return build(
        Settings(
            data_dir=folder,
            triton=TritonSettings(servers=(server,), load_timeout_seconds=60),
            reconciler=ReconcilerSettings(interval_seconds=0.3, lease_seconds=15),
            api=ApiSettings(port=0),
        )
    )


async def main(folder: Path, grpc_url: str, repository: Path, model: str) -> None:
    plane = plane_on(folder, grpc_url, repository)
    await plane.start()
    command = TuneCommand(actor="child", asker=None, model=model, clients=(1,), window_seconds=30.0)
    operation = await plane.services.tunings.start(command)
    print(await plane.services.operations.wait(operation.id, 600), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]))
