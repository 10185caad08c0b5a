"""Runs the agent in this process."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from controlplane.cli.session import Session
from controlplane.cli.workflows.up import log_to_stderr
from controlplane.errors import InvalidInputError
from controlplane.settings import Settings

if TYPE_CHECKING:
    from controlplane.agent.process import AgentRecord


def read_key(path: Path) -> str:
    """Return the key in a file.

    Raises:
        InvalidInputError: The file cannot be read.
    """
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise InvalidInputError(f"failed to read the key file {path}: {reason}", path=str(path)) from error


def run_agent(session: Session, settings: Settings) -> None:
    """Run the agent until it is asked to stop."""
    from controlplane.agent import process

    out = session.out()

    def ready(record: "AgentRecord") -> None:
        out.result(asdict(record))
        out.line(f"the agent of {record.name} is up at {record.url}", style="green")
        out.line(f"model repository {record.repository}, Triton {record.grpc_url or 'not given'}")
        if record.warning:
            out.line(f"warning: {record.warning}", style="yellow")

    log_to_stderr(settings)
    process.run(settings, on_ready=ready)
