"""The gateway's view of the API keys."""

from collections.abc import Mapping

from controlplane.domain.access import Scope
from controlplane.gateway.auth import ANY_CLIENT
from controlplane.services.keys import Keys
from controlplane.services.limits import RateLimits


class GatewayAccess:
    """Admits requests to the gateway by the same keys and limits as requests to the API.

    Args:
        keys: The keys.
        limits: Requests per second.
        limited: Whether callers without a limit of their own have one.
    """

    def __init__(self, keys: Keys, limits: RateLimits, *, limited: bool) -> None:
        self._keys = keys
        self._limits = limits
        self._limited = limited

    def direct(self) -> Mapping[str, tuple[str, ...]]:
        """See `controlplane.gateway.auth.Access`. The callers with a request limit are determined at each call."""
        if self._limited:
            return {}
        active = self._keys.active()
        if not active.enforced:
            return {ANY_CLIENT: ()}
        return {key.digest: key.models for key in active.keys if Scope.INFER in key.scopes and not key.limited}

    async def wait_changed(self) -> None:
        """See `controlplane.gateway.auth.Access`."""
        await self._keys.wait_revised()

    async def admit(self, token: str | None, model: str | None, client: str) -> None:
        """See `controlplane.gateway.auth.Access`."""
        if not self._keys.enforced:
            self._limits.take(f"address {client}")
            return
        principal = await self._keys.authenticate(token)
        self._limits.take(f"key {principal.key_id}", principal.rate_per_second, principal.burst)
        principal.require_scope(Scope.INFER, "sending requests to a model")
        if model is None:
            principal.require_wide("this")
        else:
            principal.require_model(model)
