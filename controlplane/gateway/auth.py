"""The port through which the gateway checks which client may use which model."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from controlplane.errors import UnauthenticatedError

ANY_CLIENT = "any-client"
"""Used in place of a key's digest, for every client, when no key is required."""


class Access(Protocol):
    """Checks of API keys."""

    def direct(self) -> Mapping[str, tuple[str, ...]]:
        """Return the keys whose requests HAProxy may send to Triton without calling `admit`.

        Returns:
            Patterns of model names (none: all) by SHA-256 of the key in lower-case hexadecimal, or under `ANY_CLIENT`
            if no key is required. Requests with any other key must pass `admit`.
        """
        ...

    async def wait_changed(self) -> None:
        """Wait until `direct` may return something else. The expiry of a key does not count."""
        ...

    async def admit(self, token: str | None, model: str | None, client: str) -> None:
        """Admit a request or raise an error.

        Args:
            token: The key of the request.
            model: The model it is for; None for a request that concerns all models.
            client: The client's address.

        Raises:
            AccessError: The request is not allowed; the subclass says why.
            StoreUnavailableError: The keys could not be read for too long.
        """
        ...


def bearer(authorization: Sequence[str]) -> str | None:
    """Return the bearer token in a request's ``Authorization`` headers; None if there is none or another scheme.

    Raises:
        UnauthenticatedError: There is more than one header: readers could disagree about which one counts.
    """
    if len(authorization) > 1:
        raise UnauthenticatedError(f"the request has {len(authorization)} Authorization headers; send one")
    kind, _, token = (authorization[0] if authorization else "").partition(" ")
    return token.strip() or None if kind.lower() == "bearer" else None
