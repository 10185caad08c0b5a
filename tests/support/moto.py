"""moto's S3 server, for quick runs: it starts in a second, keeps everything in memory and asks for no credentials."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.processes import free_port, listening, running, wait_until
from tests.support.s3server import S3Server


@contextlib.contextmanager
def moto_server() -> Iterator[S3Server]:
    """Run a server in its own process."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="moto-") as folder:
        log = Path(folder) / "moto.log"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        with running(command, log) as process:
            wait_until(lambda: listening(port), process, log)
            yield S3Server("moto", f"http://127.0.0.1:{port}", "tests", "tests-secret")
