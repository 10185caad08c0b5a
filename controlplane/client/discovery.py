"""Discovery of the `tritonctl up` that runs on this machine.

A control plane holds a lock on ``<data_dir>/up.lock`` for as long as it runs, and writes its address to
``<data_dir>/up.json`` once it is ready (see `controlplane.process.run`). The lock is authoritative: the kernel releases
it however the process ends, so a file that a killed ``up`` left behind is known to be stale, and its process id, which
may have been reused, is never trusted alone.
"""

import fcntl
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

RECORD_NAME = "up.json"
LOCK_NAME = "up.lock"
LOG_NAME = "up.log"


class UpRecord(BaseModel):
    """The content of ``up.json``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    url: str = Field(description="URL of the API.")
    pid: int = Field(description="Process id.")
    version: str = Field(default="", description="Version of the control plane.")
    certificate: Path | None = Field(default=None, description="The server's certificate, if it uses TLS.")
    authentication: str = Field(default="", description="Whether API keys are required.")
    warning: str = Field(default="", description="A warning for the operator.")
    started_at: datetime = Field(default_factory=lambda: datetime.now(UTC), description="When it became ready (UTC).")

    @classmethod
    def read(cls, data_dir: Path) -> Self | None:
        """Return the record of the ``up`` that runs in this data folder; None if none runs."""
        try:
            record = cls.model_validate_json((data_dir / RECORD_NAME).read_text("utf-8"))
        except (OSError, ValidationError):
            return None
        return record if is_locked(data_dir) else None


def is_locked(data_dir: Path) -> bool:
    """Return whether an ``up`` runs in this data folder."""
    try:
        descriptor = os.open(data_dir / LOCK_NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        # A shared lock, so that two commands that check at the same moment do not take each other for an `up`.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)
