"""Installs the packages of the embedded Triton if they are missing."""

from pathlib import Path

from controlplane.cli.output import Output
from controlplane.cli.progress import waiting
from controlplane.cli.session import Session
from controlplane.triton.embedded.installation import find_installation, needs_packages
from controlplane.triton.embedded.wheels import REQUIREMENTS, install_packages, unsupported


def run(session: Session) -> None:
    """Install the packages if they are missing, and report where Triton is.

    Raises:
        TritonStartError: This machine is not supported, or the installation failed.
    """
    out, root = session.out(), session.settings(store=None, endpoint=None).triton.root
    ensure(out, root)
    found = find_installation(root)
    out.result({"triton": str(found.root), "packages": str(found.packages) if found.packages else None})
    out.line(f"the embedded Triton is in {found.root}", style="green")


def ensure(out: Output, root: Path | None) -> None:
    """Install the packages before a first start. On a machine that cannot have them, the start reports the reason.

    Raises:
        TritonStartError: The installation failed.
    """
    if needs_packages(root) and not unsupported():
        with waiting(out, f"installing the embedded Triton ({', '.join(REQUIREMENTS)}); this happens once"):
            install_packages()
