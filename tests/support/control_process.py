"""A control plane with an embedded Triton and a gateway, as a process that can be killed."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.support.api import Api
from tests.support.cli_forks import Forked, start_control_plane


@contextlib.contextmanager
def started(folder: Path, *arguments: str, **environment: str) -> Iterator[tuple[Forked, dict[str, Any]]]:
    """Run a control plane as a process, killed at the end of the block; yields it and its ready file.

    Args:
        folder: Its data folder.
        arguments: The command, `up` or `serve`, and its options.
        environment: Settings, as variables.
    """
    ready = folder / "up.json"
    ready.unlink(missing_ok=True)
    words = (*arguments, "--port", "0", "--data-dir", str(folder))
    process = start_control_plane(words, cwd=Path.cwd(), env={**os.environ, **environment})
    try:
        while not ready.exists():
            assert process.poll() is None
            time.sleep(0.02)
        yield process, json.loads(ready.read_text())
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running(folder: Path, *, restricted: bool = True, **environment: str) -> Iterator[tuple[Api, httpx.Client]]:
    """Run a control plane as a process, killed at the end of the block, and a client of its gateway.

    Args:
        folder: Its data folder.
        restricted: Whether its Triton accepts loads and unloads only from it.
        environment: More settings.
    """
    settings = {
        "CONTROLPLANE_TRITON__RESTRICT_CONTROL": str(restricted).lower(),
        "CONTROLPLANE_RECONCILER__INTERVAL_SECONDS": "0.3",
        "CONTROLPLANE_RECONCILER__LEASE_SECONDS": "15",
        **environment,
    }
    with (
        started(folder, "up", **settings) as (_, document),
        httpx.Client(base_url=document["url"], timeout=60) as http,
        httpx.Client(base_url=document["gateway"]["http_url"], timeout=60) as gateway,
    ):
        yield Api(None, http, document["url"]), gateway  # type: ignore[arg-type]
