"""Sessions of browsers: a cookie in place of an API key, which JavaScript of the page then never has to keep.

A session lives in the memory of this instance and contains the key that it was opened with. Each request checks that
key again, so a key that is revoked or expires ends its sessions. Neither the key nor the cookie's value is written to
disk.
"""

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from controlplane.domain.access import Principal
from controlplane.errors import UnauthenticatedError
from controlplane.services.keys import Keys

LIFETIME_SECONDS = 12 * 3600.0
"""A session ends this long after it was opened."""
CODE_SECONDS = 60.0
"""A sign-in code can be used once, for this long."""
_KEPT = 1000
"""Number of sessions and of codes at the same time; the oldest is dropped."""

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Session:
    """A browser that is signed in.

    Attributes:
        api_key: The key that it was opened with.
        csrf_token: Value that each request that changes something must send in a header.
        ends_at: When it ends, in seconds of the monotonic clock.
    """

    api_key: str = field(repr=False)
    csrf_token: str = field(repr=False)
    ends_at: float


class Sessions:
    """Opens and finds sessions; used from the event loop alone.

    Args:
        keys: Checks API keys.
        monotonic: Returns a monotonic time in seconds.
    """

    def __init__(self, keys: Keys, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._monotonic = monotonic
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()
        self._codes: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    async def open(self, api_key: str) -> tuple[str, Session, Principal]:
        """Open a session with an API key; return the cookie's value, the session and the caller.

        Raises:
            UnauthenticatedError: The key is not valid.
        """
        principal = await self._keys.authenticate(api_key)
        session = Session(api_key, secrets.token_urlsafe(24), self._monotonic() + LIFETIME_SECONDS)
        cookie = secrets.token_urlsafe(32)
        _keep(self._sessions, _digest(cookie), session)
        return cookie, session, principal

    def code(self, api_key: str) -> str:
        """Return a code that opens one session with this key, which must have been checked."""
        code = secrets.token_urlsafe(32)
        _keep(self._codes, _digest(code), (api_key, self._monotonic() + CODE_SECONDS))
        return code

    async def redeem(self, code: str) -> tuple[str, Session, Principal]:
        """Open a session with a code; it cannot be used again.

        Raises:
            UnauthenticatedError: The code is unknown, was used or is too old, or its key is not valid any more.
        """
        api_key, ends_at = self._codes.pop(_digest(code), ("", 0.0))
        if self._monotonic() >= ends_at:
            raise UnauthenticatedError(
                f"the sign-in code is unknown, was used already, or is older than {CODE_SECONDS:.0f} s; "
                "run `tritonctl ui` again, or sign in with an API key"
            )
        return await self.open(api_key)

    def find(self, cookie: str) -> Session | None:
        """Return the session of a cookie; None if there is none."""
        digest = _digest(cookie)
        session = self._sessions.get(digest)
        if session is not None and self._monotonic() >= session.ends_at:
            del self._sessions[digest]
            return None
        return session

    def end(self, cookie: str) -> None:
        """End a session, if it exists."""
        self._sessions.pop(_digest(cookie), None)


def same_token(session: Session, given: str) -> bool:
    """Return whether a request has the CSRF token of its session."""
    return hmac.compare_digest(session.csrf_token.encode(), given.encode())


def _digest(secret: str) -> bytes:
    # A dictionary compares byte by byte: with a digest, the duration reveals nothing about a value that exists.
    return hashlib.sha256(secret.encode()).digest()


def _keep(kept: OrderedDict[bytes, Value], digest: bytes, value: Value) -> None:
    kept[digest] = value
    if len(kept) > _KEPT:
        kept.popitem(last=False)
