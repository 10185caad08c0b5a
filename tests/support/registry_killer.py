"""Runs registry actions in processes that kill themselves at a chosen operation of the store.

Run as a script; reads one JSON request a line, answers each with the exit status of the process that it forked for it
(a fork of a warm, single-threaded process takes milliseconds, an interpreter's start most of a second).
"""

import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from controlplane.domain.deployment import DeploymentSpec
from controlplane.registry.registry import Registry
from controlplane.storage.filesystem import FilesystemStore
from tests.support.hooked_store import HookedStore
from tests.support.registries import artifact, new_registry


def _act(registry: Registry, action: str, files: Path) -> None:
    if action == "publish":
        manifest, paths = artifact(files, model=b"two", weights=b"shared")
        registry.publish("m", manifest, paths, actor="child", aliases=["champion"], commit_id="job")
    elif action == "delete":
        registry.delete_version("m", 1, actor="child")
    elif action == "delete_model":
        registry.delete_model("m", actor="child")
    elif action == "collect":
        registry.collect(dry_run=False, grace_seconds=0)
    elif action == "deploy":
        spec = DeploymentSpec(model="m", reference="m:1", version=1)
        registry.deployments.put(spec, after=None, actor="child", reason="deploy")
    else:
        raise ValueError(action)


def _run(request: dict[str, Any]) -> None:
    count = itertools.count()

    def kill(operation: str, key: str) -> None:
        if next(count) == request["at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    store = HookedStore(FilesystemStore(Path(request["store"])), **{request["when"]: kill})
    _act(new_registry(store, Path(request["cache"])), request["action"], Path(request["files"]))


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                _run(json.loads(line))
            except BaseException as error:  # noqa: BLE001 - reported, and the child must not return to the loop
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
