"""Credentials that are revoked while the control plane runs. Only Ceph, a server with real users, supports it."""

import time
from collections.abc import Callable

from tests.faults.cases import Case, Trial

_DENIED = r"store-access|denied access|^readyz store.*denied"


def revoked(seconds: float) -> Callable[[Trial], None]:
    """Suspend the user for some seconds."""

    def run(trial: Trial) -> None:
        server = trial.stage.server
        assert server is not None
        assert server.suspend is not None
        server.suspend(True)
        try:
            end = time.monotonic() + seconds
            trial.sightings.wait(60)
            while time.monotonic() < end:
                if not trial.stage.answers():
                    trial.problems.append("inference needs the store")
                time.sleep(0.1)
        finally:
            server.suspend(False)
        trial.lifted()
        trial.heals(lambda: trial.stage.publishes() and trial.stage.deploys())

    return run


def credential_cases(seconds: float) -> list[Case]:
    """Return all credential cases."""
    return [Case("S3: credentials revoked", revoked(seconds), _DENIED, long=2)]
