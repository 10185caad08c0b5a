"""A control plane in a process of its own; once there is a file ``die`` in its data folder, its next unload kills it.

It leaves ``left.json`` there: which of its announcements stood at that moment, and which gateways kept away.

Run as ``python -m tests.gateway.leader_child SETTINGS`` with its settings as JSON.
"""

import json
import os
import signal
import sys

from controlplane.process import run
from controlplane.registry.gateways import GatewayLog
from controlplane.settings import Settings
from controlplane.storage.factory import open_store
from controlplane.triton.client import TritonClient


def main(settings: Settings) -> None:
    unload = TritonClient.unload

    async def dying(self: TritonClient, model: str) -> None:
        if (settings.data_dir / "die").exists():
            gateways = GatewayLog(open_store(settings.store, settings.data_dir)).gateways()
            left = {name: sorted(gateways.acknowledged.get(name, ())) for name in gateways.announced}
            (settings.data_dir / "left.json").write_text(json.dumps(left))
            os.kill(os.getpid(), signal.SIGKILL)
        await unload(self, model)

    TritonClient.unload = dying  # type: ignore[method-assign, assignment]
    run(settings)


if __name__ == "__main__":
    main(Settings.model_validate_json(sys.argv[1]))
