"""Who may ask which model: a port to whoever knows the API keys."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from controlplane.errors import UnauthenticatedError

ANYBODY = "anybody"
"""Stands for every client in place of a key's digest, where no key is asked for."""


class Access(Protocol):
    """Knows the API keys."""

    def direct(self) -> Mapping[str, tuple[str, ...]]:
        """Return whose requests may go to Triton without being looked at.

        Returns:
            Patterns of model names (none: all) by SHA-256 of the key in lower-case hexadecimal, or under `ANYBODY`
            where no key is asked for. Everybody else's requests come to `admit`.
        """
        ...

    async def admit(self, token: str | None, model: str | None, client: str) -> None:
        """Let a request in.

        Args:
            token: The key that came with it.
            model: The model it is for; None for what concerns all models.
            client: Its address.

        Raises:
            AccessError: It may not; which one says why.
            StoreUnavailableError: The keys could not be read for too long.
        """
        ...


def bearer(authorization: Sequence[str]) -> str | None:
    """Return the key in a request's ``Authorization`` headers; None without one, or with something else.

    Raises:
        UnauthenticatedError: There is more than one: which of them counts would depend on who reads them.
    """
    if len(authorization) > 1:
        raise UnauthenticatedError(f"the request has {len(authorization)} Authorization headers; send one")
    kind, _, token = (authorization[0] if authorization else "").partition(" ")
    return token.strip() or None if kind.lower() == "bearer" else None
