"""API keys for authentication and authorization. The keys are in memory; a task checks the bucket for changes.

A change made through this instance takes effect immediately, and one made elsewhere within ``auth.refresh_seconds``. An
unknown key is looked up in the bucket before it is refused, so that a new one works within a second. While the store
cannot be reached, the keys last read are valid for ``auth.stale_max_seconds``; after that, every request is refused.

`Keys.active` provides what a proxy needs to check keys without us: digests, scopes, model patterns, and a number that
changes whenever they change.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from controlplane.domain.access import ApiKey, Keyring, Principal, Scope, included, key_id_of
from controlplane.errors import (
    ControlPlaneError,
    InvalidInputError,
    StoreUnavailableError,
    UnauthenticatedError,
)
from controlplane.registry.keys import ApiKeys, KeyRequest, digest_of, find, new_token
from controlplane.settings import AuthSettings

logger = logging.getLogger(__name__)

LOCAL_NAME = "local"
"""The name of the key that a control plane creates for the commands on its own machine."""

_LOOK_AGAIN_SECONDS = 1.0
"""Minimum time between two bucket look-ups of unknown keys."""
_LOOK_SECONDS = 60.0
"""Interval at which the keys are checked regardless of the change feed."""
_NO_DIGEST = "0" * 64


class Authentication(StrEnum):
    """Whether keys are required, and why not."""

    ON = "on"
    OFF_LOOPBACK = "off-loopback"
    """No key exists yet, and the port is reachable only from this machine."""
    OFF_INSISTED = "off-insisted"
    """The settings disable authentication."""


WARNINGS = {
    Authentication.OFF_LOOPBACK: "authentication is off: every process on this machine can do everything; create the "
    "first key with `tritonctl keys create NAME --scope admin`",
    Authentication.OFF_INSISTED: "AUTHENTICATION IS OFF because of the settings: any client that reaches the port can "
    "do everything, including running code on the Triton servers",
}


@dataclass(frozen=True, slots=True)
class ActiveKey:
    """A valid key, for a proxy that checks keys without us.

    Attributes:
        id: The key's id.
        name: The key's name.
        digest: SHA-256 of the whole key as the client sends it (``Authorization: Bearer KEY``), in hexadecimal.
        scopes: What it may do, including all implied scopes.
        models: Patterns of the models it is for (``*``: any characters); empty: all models.
        expires_at: When it expires (UTC); None: never.
        limited: Whether it has a request limit of its own, which the proxy's requests must be counted against.
    """

    id: str
    name: str
    digest: str
    scopes: frozenset[Scope]
    models: tuple[str, ...]
    expires_at: datetime | None
    limited: bool = False


@dataclass(frozen=True, slots=True)
class ActiveKeys:
    """The keys that are valid at this moment.

    Attributes:
        version: Increases with every change of the keys; the expiry of a key does not change it.
        enforced: Whether a key is required at all.
        keys: The keys.
    """

    version: int
    enforced: bool
    keys: tuple[ActiveKey, ...]


class Keys:
    """Checks, creates and revokes keys.

    Args:
        registry: The keys in the bucket.
        settings: When keys are required.
        host: The address that the API listens on.
        clock: Returns the time (UTC).
        monotonic: Returns a monotonic time in seconds.
    """

    def __init__(
        self,
        registry: ApiKeys,
        settings: AuthSettings,
        host: str,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._host = host
        self._clock = clock
        self._monotonic = monotonic
        self._version = 0
        self._ring = Keyring()
        self._by_id: dict[str, ApiKey] = {}
        self._looked_at = 0.0
        self._looking = asyncio.Lock()
        self._searched_at = -_LOOK_AGAIN_SECONDS
        self._searching = asyncio.Lock()
        self.changed = asyncio.Event()
        """Set when keys become required."""
        self._revised = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        local_id, self._local_token = new_token()
        self._local = Principal(local_id, LOCAL_NAME, included([Scope.ADMIN]))
        self._local_digest = digest_of(self._local_token)

    @property
    def authentication(self) -> Authentication:
        """Return whether keys are required."""
        if self._settings.mode == "off":
            return Authentication.OFF_INSISTED
        # Revoked and expired keys count here: revoking the last key must not disable authentication.
        if self._settings.mode == "required" or self._version or not is_loopback(self._host):
            return Authentication.ON
        return Authentication.OFF_LOOPBACK

    @property
    def enforced(self) -> bool:
        """Return whether keys are required."""
        return self.authentication is Authentication.ON

    @property
    def warning(self) -> str:
        """Return the warning to show prominently; empty if there is none."""
        return WARNINGS.get(self.authentication, "")

    @property
    def local_token(self) -> str:
        """Return an admin key of this process alone, for the commands of users who may read its data folder."""
        return self._local_token

    async def open(self) -> None:
        """Read the keys and start to watch them.

        Raises:
            InvalidInputError: The port is reachable from other machines, and there is no key.
            StoreError: The store cannot be reached.
        """
        await self._look()
        self.check_host(self._host)
        if self.warning:
            logger.warning("%s", self.warning)
        self._task = asyncio.create_task(self._watch(), name="api-keys")

    def check_host(self, host: str) -> None:
        """Ensure that other machines cannot connect without a key.

        Raises:
            InvalidInputError: The port is reachable from other machines, and there is no key.
        """
        if self._settings.mode == "auto" and not self._version and not is_loopback(host):
            raise InvalidInputError(
                f"refusing to listen on {host}: there is no API key yet, so any client that reaches "
                "the port could do everything. Create one with `tritonctl keys create NAME --scope "
                "admin --offline` (same store), listen on 127.0.0.1, or use --insecure-no-auth "
                "(CONTROLPLANE_AUTH__MODE=off)",
                host=host,
            )

    async def close(self) -> None:
        """Stop watching the keys."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def authenticate(self, token: str | None) -> Principal:
        """Return the caller.

        Raises:
            UnauthenticatedError: There is no key, or it is not valid (any more).
            StoreUnavailableError: The keys could not be read for too long.
        """
        if not token:
            raise UnauthenticatedError(
                "an API key is required: send it as `Authorization: Bearer KEY` (tritonctl: "
                "TRITONCTL_API_KEY or --api-key-file)"
            )
        digest = digest_of(token)
        if hmac.compare_digest(digest, self._local_digest):
            return self._local
        key_id = key_id_of(token)
        if key_id is not None and key_id not in self._by_id:
            with contextlib.suppress(ControlPlaneError):
                await self._look_again()
        if self._age() > self._settings.stale_max_seconds:
            raise StoreUnavailableError(
                f"the API keys could not be read for {self._age():.0f} s, so none is accepted until "
                "the store is reachable again"
            )
        key = self._by_id.get(key_id or "")
        # The digests are always compared, and in constant time, so that the duration reveals nothing about a key.
        good = hmac.compare_digest(digest, key.digest if key else _NO_DIGEST)
        if key is None or not good:
            raise UnauthenticatedError("unknown API key")
        if why := key.why_not(self._clock()):
            raise UnauthenticatedError(f"the API key {key.name!r} ({key.id}) {why}", key=key.id)
        return Principal.of(key)

    async def wait_revised(self) -> None:
        """Wait until a key is created or revoked, as far as this instance knows."""
        await self._revised.wait()

    def active(self) -> ActiveKeys:
        """Return the keys that are valid at this moment, as far as this instance knows. No I/O."""
        now = self._clock()
        return ActiveKeys(
            version=self._version,
            enforced=self.enforced,
            keys=tuple(
                ActiveKey(
                    key.id,
                    key.name,
                    key.digest,
                    included(key.scopes),
                    key.models,
                    key.expires_at,
                    key.rate_per_second is not None,
                )
                for key in self._ring.keys
                if not key.why_not(now)
            ),
        )

    async def create(self, request: KeyRequest, *, actor: str) -> tuple[ApiKey, str]:
        """Create a key; the secret is returned only here (InvalidInputError, ConflictError)."""
        made = await asyncio.to_thread(lambda: self._registry.create(request, actor=actor))
        logger.info("%s created the API key %s (%s)", actor, made[0].id, made[0].name)
        await self._look()
        return made

    async def revoke(self, key_id: str, *, actor: str) -> ApiKey:
        """Revoke a key by its id or name (NotFoundError)."""
        gone = await asyncio.to_thread(lambda: self._registry.revoke(key_id, actor=actor))
        logger.info("%s revoked the API key %s (%s)", actor, gone.id, gone.name)
        await self._look()
        return gone

    async def all(self) -> tuple[ApiKey, ...]:
        """Return all keys including revoked ones, oldest first."""
        await self._look()
        return self._ring.keys

    async def get(self, key_id: str) -> ApiKey:
        """Return a key by its id or name (NotFoundError)."""
        await self._look()
        return find(self._ring, key_id)

    def _age(self) -> float:
        return self._monotonic() - self._looked_at

    async def _look(self, *, max_age_seconds: float = 0.0) -> None:
        async with self._looking:
            began = self._monotonic()
            version, ring = await asyncio.to_thread(lambda: self._registry.read(max_age_seconds=max_age_seconds))
            was = self.authentication
            if version != self._version:
                self._version, self._ring = version, ring
                self._by_id = {key.id: key for key in ring.keys}
                self._revised.set()
                self._revised = asyncio.Event()
            self._looked_at = began
            if was is not self.authentication:
                logger.warning("an API key exists: from now on, every request needs one")
                self.changed.set()

    async def _look_again(self) -> None:
        """Look up an unknown key. Callers that come too soon after another look-up wait and share the next one.

        Raises:
            StoreError: The store failed.
        """
        asked = self._monotonic()
        async with self._searching:
            if self._searched_at > asked:
                return
            await asyncio.sleep(max(0.0, self._searched_at + _LOOK_AGAIN_SECONDS - self._monotonic()))
            self._searched_at = self._monotonic()
            await self._look()

    async def _watch(self) -> None:
        failing, looked = False, self._monotonic()
        while True:
            # While nothing changes, a check costs no request of its own: it uses the change feed's last poll.
            await asyncio.sleep(self._settings.refresh_seconds / 2)
            try:
                fresh = self._monotonic() - looked >= _LOOK_SECONDS  # lost revisions have no entry
                looked = self._monotonic() if fresh else looked
                await self._look(max_age_seconds=0.0 if fresh else self._settings.refresh_seconds / 2)
                failing = False
            except ControlPlaneError as error:
                if not failing:  # changes are logged, polls are not
                    logger.warning("failed to read the API keys: %s", error.message)
                failing = True


def is_loopback(host: str) -> bool:
    """Return whether a listener on this address is reachable only from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
