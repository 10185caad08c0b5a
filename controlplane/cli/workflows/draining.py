"""Waits until no model is left on a server that is drained."""

import time
from datetime import datetime

from controlplane.cli.output import Output
from controlplane.cli.progress import waiting
from controlplane.client.errors import OperationFailedError, WaitTimeoutError
from controlplane.client.http import Client, segment
from controlplane.domain.states import ServerStatus

_LOOK_SECONDS = 0.5
_NAMED = 5


def server_path(name: str) -> str:
    """Return the path of a server in the API."""
    return f"/v1/servers/{segment(name)}"


def wait_drained(client: Client, out: Output, name: str, since: datetime, timeout: float | None) -> ServerStatus:
    """Wait until a drain is complete.

    Args:
        client: The client.
        out: Where the progress is shown.
        name: The server.
        since: When the cordon was set, as the API returned it.
        timeout: Maximum time in seconds; None: no limit.

    Returns:
        The server after the drain.

    Raises:
        OperationFailedError: Models remain that no other server can have, or the cordon was removed or replaced.
        WaitTimeoutError: It takes longer; the drain continues.
    """
    end = None if timeout is None else time.monotonic() + timeout
    applied = False
    with waiting(out, f"draining {name}") as progress:
        while True:
            server = client.fetch(ServerStatus, server_path(name))
            cordon = server.cordon
            applied = applied or (cordon is not None and cordon.at == since)
            if applied:
                if cordon is None or not cordon.drain or cordon.at != since:
                    raise OperationFailedError(
                        f"the drain of {name} was ended by another command; see `tritonctl audit`", code="drain-ended"
                    )
                if cordon.drained:
                    return server
                if set(cordon.remaining) <= cordon.stuck.keys():
                    raise OperationFailedError(_stuck(name, cordon.stuck), code="drain-stuck")
                progress.stage(f"draining {name}: {_listed(cordon.remaining)} left")
            if end is not None and time.monotonic() >= end:
                left = _listed(cordon.remaining) if cordon is not None and cordon.remaining else "models"
                raise WaitTimeoutError(f"{name} is not drained after {timeout:g} s: {left} left; the drain continues")
            time.sleep(_LOOK_SECONDS)


def _listed(models: tuple[str, ...]) -> str:
    more = len(models) - _NAMED
    return ", ".join(models[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _stuck(name: str, stuck: dict[str, str]) -> str:
    reasons = [f"{model}: {why}" for model, why in stuck.items()]
    more = len(reasons) - _NAMED
    listed = "; ".join(reasons[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
    return (
        f"{len(stuck)} {'model has' if len(stuck) == 1 else 'models have'} no place on another server and stay on "
        f"{name}: {listed}. Add a server or memory, or run `tritonctl drain {name} --force` to unload what stays"
    )
