"""A control plane with an embedded Triton and a gateway, as a process that can be killed."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.support.api import Api
from tests.support.processes import tied_to_us

_RUN = """
import sys
from pathlib import Path
from controlplane.process import run
from controlplane.settings import ApiSettings, ReconcilerSettings, Settings, TritonSettings
run(
    Settings(
        data_dir=Path(sys.argv[1]),
        api=ApiSettings(port=0),
        triton=TritonSettings(embedded=True, restrict_control=sys.argv[2] == "restricted"),
        reconciler=ReconcilerSettings(interval_seconds=0.3, lease_seconds=15),
    )
)
"""


@contextlib.contextmanager
def running(folder: Path, *, restricted: bool = True, **environment: str) -> Iterator[tuple[Api, httpx.Client]]:
    """Run a control plane as a process, killed at the end of the block, and a client of its gateway.

    Args:
        folder: Its data folder.
        restricted: Whether its Triton accepts loads and unloads only from it.
        environment: More settings.
    """
    ready = folder / "up.json"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-c", _RUN, str(folder), "restricted" if restricted else "open"]
    process = subprocess.Popen(tied_to_us(command), env={**os.environ, **environment})
    try:
        while not ready.exists():
            assert process.poll() is None
            time.sleep(0.02)
        document = json.loads(ready.read_text())
        with (
            httpx.Client(base_url=document["url"], timeout=60) as http,
            httpx.Client(base_url=document["gateway"]["http_url"], timeout=60) as gateway,
        ):
            yield Api(None, http, document["url"]), gateway  # type: ignore[arg-type]
    finally:
        process.kill()
        process.wait()
