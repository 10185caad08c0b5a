"""API keys in the bucket: one chain for all keys, so that one request shows whether any key changed.

The chain contains digests and never a secret. A person who can read the bucket cannot use a key. A person who can write
to the bucket, or to the folder of a `tritonctl up`, can create one.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from controlplane.domain.access import TOKEN_PREFIX, ApiKey, Keyring, Scope, check_key_name, check_patterns
from controlplane.errors import ConflictError, InvalidInputError, NotFoundError
from controlplane.registry.changes import ChangeFeed, ChangeLog
from controlplane.registry.head_memory import HeadMemory
from controlplane.registry.single import SingleChain
from controlplane.storage.base import ObjectStore

NAME = "keys"
PREFIX = f"{NAME}/revisions/"
KEYS_MAX = 2000


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """A request for a new key.

    Attributes:
        name: The owner of the key; names of active keys are unique.
        scopes: The permitted scopes.
        models: Patterns of the permitted models; empty permits all.
        expires_at: When the key expires (UTC); None: never.
        rate_per_second: Requests per second; None: the default.
        burst: Maximum burst of requests; None: the default.
    """

    name: str
    scopes: tuple[Scope, ...]
    models: tuple[str, ...] = ()
    expires_at: datetime | None = None
    rate_per_second: float | None = None
    burst: int | None = None


def _utc_now() -> datetime:
    return datetime.now(UTC)


def new_token() -> tuple[str, str]:
    """Return a new key's id and the key itself, which contains 256 random bits."""
    key_id = secrets.token_hex(6)
    return key_id, f"{TOKEN_PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"


def digest_of(token: str) -> str:
    """Return the stored digest of a key."""
    return hashlib.sha256(token.encode()).hexdigest()


class ApiKeys:
    """Creates, revokes and reads keys. Blocks; safe to use from several threads."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        clock: Callable[[], datetime] = _utc_now,
        changes: ChangeLog | None = None,
        feed: ChangeFeed | None = None,
        memory: HeadMemory | None = None,
    ) -> None:
        self._clock = clock
        self._chain = SingleChain(store, NAME, Keyring, changes=changes, feed=feed, memory=memory)

    def read(self, *, max_age_seconds: float = 0.0) -> tuple[int, Keyring]:
        """Return the number of the newest revision (0 if there is none) and the keys (see `SingleChain.read`)."""
        return self._chain.read(max_age_seconds=max_age_seconds)

    def create(self, request: KeyRequest, *, actor: str) -> tuple[ApiKey, str]:
        """Create a key.

        Returns:
            The stored key, and the secret, which cannot be recovered later.

        Raises:
            InvalidInputError: A name, a pattern or a time is invalid, or the first key has no permission to create
                others.
            ConflictError: An active key has this name, or there are too many keys.
        """
        now = self._clock()
        check_key_name(request.name)
        models = check_patterns(request.models)
        if not request.scopes:
            raise InvalidInputError("a key needs at least one scope: " + ", ".join(Scope))
        if request.expires_at is not None and request.expires_at <= now:
            raise InvalidInputError(
                f"{request.expires_at.isoformat()} is in the past; the expiry of a key must be in the future"
            )
        key_id, token = new_token()
        key = ApiKey(
            id=key_id,
            name=request.name,
            digest=digest_of(token),
            scopes=tuple(sorted(set(request.scopes), key=list(Scope).index)),
            models=models,
            created_at=now,
            created_by=actor,
            expires_at=request.expires_at,
            rate_per_second=request.rate_per_second,
            burst=request.burst,
        )

        def add(ring: Keyring) -> tuple[Keyring, str]:
            keys = ring.keys
            if any(other.name == key.name and not other.why_not(now) for other in keys):
                raise ConflictError(
                    f"an active key {key.name!r} already exists; revoke it first, or choose another name", name=key.name
                )
            if len(keys) >= KEYS_MAX:
                raise ConflictError(f"the limit of {len(keys)} API keys (including revoked ones) is reached")
            after = Keyring(keys=(*keys, key))
            if not after.has_admin(now):
                raise InvalidInputError(
                    "without an active key that can create and revoke keys, none could be created later; first "
                    "create one with the scope 'admin' for all models"
                )
            return after, f"create key {key.id} ({key.name})"

        self._chain.edit(add, actor=actor)
        return key, token

    def revoke(self, key_id: str, *, actor: str) -> ApiKey:
        """Revoke a key permanently. Revoking a revoked key is not an error.

        Raises:
            NotFoundError: No key has this id or name.
        """

        def change(ring: Keyring) -> tuple[Keyring, str] | None:
            key = find(ring, key_id)
            if key.revoked_at is not None:
                return None
            gone = key.model_copy(update={"revoked_at": self._clock(), "revoked_by": actor})
            keys = tuple(gone if other.id == key.id else other for other in ring.keys)
            return Keyring(keys=keys), f"revoke key {key.id} ({key.name})"

        _, ring = self._chain.edit(change, actor=actor)
        return find(ring, key_id)


def find(ring: Keyring, wanted: str) -> ApiKey:
    """Return a key by its id or its name; for a name, prefer the active key, then the newest one.

    Raises:
        NotFoundError: No key has this id or name.
    """
    named: Iterable[ApiKey] = [key for key in ring.keys if key.name == wanted]
    key = ring.get(wanted) or max(named, key=lambda key: (key.revoked_at is None, key.created_at), default=None)
    if key is None:
        raise NotFoundError(f"there is no API key {wanted[:64]!r}", key=wanted[:64])
    return key
