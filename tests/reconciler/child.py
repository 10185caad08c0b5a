"""A control plane in its own process that dies or stops before or during a given step.

Run as ``python -m tests.reconciler.child FOLDER GRPC_URL REPOSITORY [HOW STEP]`` with HOW one of ``kill-before``,
``kill-during``, ``stop-before``. Prints a line for each thing it does.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from controlplane.lifecycle.executor import Executor, Outcome
from controlplane.reconciler.controller import Reconciler
from controlplane.servers.server import ManagedServer
from controlplane.triton.client import TritonClient, TritonTimeouts
from controlplane.triton.repository import ModelRepository
from tests.reconciler.conftest import open_registry, settings


def say(*words: object) -> None:
    print(*words, flush=True)


def arm(executor: Executor, how: str, step: int) -> None:
    """Wrap the executor so that this process dies or stops at its STEP-th action."""
    run, count = executor.run, 0

    async def counted(server: Any, model: str, action: Any, *rest: Any) -> Outcome:
        nonlocal count
        count += 1
        say("begin", count, type(action).__name__)
        if count == step and how == "kill-before":
            os.kill(os.getpid(), signal.SIGKILL)
        if count == step and how == "stop-before":
            say("asleep")
            os.kill(os.getpid(), signal.SIGSTOP)
        if count == step and how == "kill-during":
            asyncio.get_running_loop().call_later(0.03, os.kill, os.getpid(), signal.SIGKILL)
        outcome = await run(server, model, action, *rest)
        say("end", count, type(action).__name__, type(outcome.error).__name__)
        return outcome

    executor.run = counted  # type: ignore[method-assign, assignment]


async def main(folder: Path, grpc_url: str, repository: Path, how: str = "", step: str = "0") -> None:
    client = TritonClient("test", grpc_url, timeouts=TritonTimeouts(load_seconds=60))
    server = ManagedServer("test", client, ModelRepository(repository))
    reconciler = Reconciler(open_registry(folder), [server], settings(lease_seconds=1.0))
    arm(reconciler._executor, how, int(step))
    await reconciler.start()
    leading = None
    while True:
        if leading is not reconciler.leading:
            leading = reconciler.leading
            say("leading" if leading else "following")
        await asyncio.sleep(0.02)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), *sys.argv[4:]))
