"""A control plane with several servers in its own process that dies during a defragmentation.

Run as ``python -m tests.reconciler.fleet_child FOLDER SERVERS MODEL HOW STEP``: SERVERS is JSON, a list of objects with
``name``, ``grpc_url``, ``repository`` and ``zone``. As soon as MODEL is Ready it is defragmented; HOW and STEP are
those of `child`, counted from there.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from controlplane.domain.states import Phase
from controlplane.reconciler.controller import Reconciler
from controlplane.servers.server import ManagedServer
from controlplane.triton.client import TritonClient, TritonTimeouts
from controlplane.triton.repository import ModelRepository
from tests.reconciler.child import arm, say
from tests.reconciler.conftest import open_registry, settings


def server_of(document: dict[str, Any]) -> ManagedServer:
    client = TritonClient(document["name"], document["grpc_url"], timeouts=TritonTimeouts(load_seconds=60))
    zone = document["zone"]
    return ManagedServer(
        document["name"], client, ModelRepository(Path(document["repository"])), zone=zone, labels={"zone": zone}
    )


async def main(folder: Path, servers: str, model: str, how: str, step: str) -> None:
    # Its probes would count as steps.
    patient = settings(lease_seconds=1.0, probe_interval_seconds=600.0)
    reconciler = Reconciler(open_registry(folder), [server_of(one) for one in json.loads(servers)], patient)
    await reconciler.start()
    while True:
        status = reconciler.status(model)
        if reconciler.leading and status is not None and status.phase is Phase.READY:
            break
        await asyncio.sleep(0.02)
    arm(reconciler._executor, how, int(step))
    say("moves", [(move.from_server, move.to_server) for move in reconciler.defragment(dry_run=False, limit=10).moves])
    await asyncio.sleep(60)
    say("the defragmentation ended without the kill")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
