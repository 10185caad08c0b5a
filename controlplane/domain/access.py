"""Authorization: API keys, their scopes and models. Pure rules; no clock, no store.

A key is a random secret of 256 bits, which cannot be guessed or looked up, so a plain SHA-256 is stored instead of a
slow hash: slow hashes protect passwords, which people choose, and would only slow down each request.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.manifest import Sha256
from controlplane.errors import ForbiddenError, InvalidInputError, InvalidNameError

TOKEN_PREFIX = "tck"
"""Prefix of every key, so that scanners for leaked secrets can find one."""

KEY_NAME_MAX = 64
PATTERNS_MAX = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]*")
_PATTERN = re.compile(r"[A-Za-z0-9_.*-]{1,128}")
_TOKEN = re.compile(rf"{TOKEN_PREFIX}_([0-9a-f]{{12}})_[A-Za-z0-9_-]{{43}}")


class Scope(StrEnum):
    """What a key permits."""

    READ = "read"
    """Read everything."""
    INFER = "infer"
    """Send inference requests, and have models loaded for them."""
    DEPLOY = "deploy"
    """Publish, convert, deploy and roll back. Includes `read`."""
    CODE = "code"
    """Publish code: TorchScript, pickles, factories, settings that load libraries or files. Includes `deploy`."""
    AUDIT = "audit"
    """Read the audit log: who changed what."""
    ADMIN = "admin"
    """Keys, garbage collection, and everything else."""


_INCLUDED: dict[Scope, frozenset[Scope]] = {
    Scope.READ: frozenset({Scope.READ}),
    Scope.INFER: frozenset({Scope.INFER}),
    Scope.DEPLOY: frozenset({Scope.DEPLOY, Scope.READ}),
    Scope.CODE: frozenset({Scope.CODE, Scope.DEPLOY, Scope.READ}),
    Scope.AUDIT: frozenset({Scope.AUDIT}),
    Scope.ADMIN: frozenset(Scope),
}


class ApiKey(BaseModel):
    """A key as stored in the bucket: everything except the secret."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(
        pattern=r"^[0-9a-f]{12}$", description="Public id of the key; not a secret.", examples=["3f9c1d27ab04"]
    )
    name: str = Field(
        description="Name of the key's user; recorded as the actor of the key's requests.", examples=["ci"]
    )
    digest: Sha256 = Field(description="SHA-256 of the whole key.")
    scopes: tuple[Scope, ...] = Field(min_length=1, description="What the key permits.")
    models: tuple[str, ...] = Field(
        default=(), description="Patterns of the model names that the key permits; empty permits all models."
    )
    created_at: datetime = Field(description="When the key was created (UTC).")
    created_by: str = Field(description="Who created the key.")
    expires_at: datetime | None = Field(default=None, description="When the key expires (UTC); null: never.")
    revoked_at: datetime | None = Field(default=None, description="When the key was revoked (UTC); null: not revoked.")
    revoked_by: str = Field(default="", description="Who revoked the key.")
    rate_per_second: float | None = Field(
        default=None, gt=0, description="Limit of requests per second; null: the default."
    )
    burst: int | None = Field(default=None, ge=1, description="Limit of requests in a burst; null: the default.")

    def why_not(self, now: datetime) -> str:
        """Return why the key is not valid any more; empty if it is."""
        if self.revoked_at is not None:
            return "was revoked"
        if self.expires_at is not None and now >= self.expires_at:
            return f"expired at {self.expires_at.isoformat(timespec='seconds')}"
        return ""

    @property
    def wide(self) -> bool:
        """Whether it is valid for all models."""
        return not self.models


class Keyring(BaseModel):
    """All keys ever created: the body of their chain's revisions."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    keys: tuple[ApiKey, ...] = Field(default=(), description="The keys, oldest first, including revoked ones.")

    def get(self, key_id: str) -> ApiKey | None:
        """Return a key by its id."""
        return next((key for key in self.keys if key.id == key_id), None)

    def has_admin(self, now: datetime) -> bool:
        """Return whether a valid key exists that can create and revoke keys over the API."""
        return any(Scope.ADMIN in key.scopes and key.wide and not key.why_not(now) for key in self.keys)


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller, as authenticated by a key.

    Attributes:
        key_id: The key's id.
        name: The key's name.
        scopes: Its scopes, with all that they include.
        models: Patterns of the models it is valid for; empty for all.
        rate_per_second: Its own rate limit; None for the default.
        burst: Requests it may send at once; None for the default.
    """

    key_id: str
    name: str
    scopes: frozenset[Scope]
    models: tuple[str, ...] = ()
    rate_per_second: float | None = None
    burst: int | None = None

    @classmethod
    def of(cls, key: ApiKey) -> "Principal":
        """Return the principal of a key."""
        return cls(key.id, key.name, included(key.scopes), key.models, key.rate_per_second, key.burst)

    def actor(self, claimed: str | None) -> str:
        """Return the actor to record: the key, followed by the identity that the client claims.

        A key's name contains no ``/``, so the part before the first one is authenticated and the rest is only claimed.
        """
        return f"{self.name}/{claimed}" if claimed else self.name

    def sees(self, model: str) -> bool:
        """Return whether the key is valid for this model."""
        return matches(self.models, model)

    def require_scope(self, scope: Scope, what: str) -> None:
        """Raise ForbiddenError unless the key has the scope."""
        if scope not in self.scopes:
            have = ", ".join(sorted(self.scopes))
            raise ForbiddenError(
                f"{what} needs the scope {scope.value!r}; the key {self.name!r} has {have}. A key with the scope "
                f"'admin' can create one: `tritonctl keys create NAME --scope {scope.value}`",
                key=self.key_id,
                needed=scope.value,
                scopes=sorted(self.scopes),
            )

    def require_model(self, model: str) -> None:
        """Raise ForbiddenError unless the key is valid for this model."""
        if not self.sees(model):
            raise ForbiddenError(
                f"the key {self.name!r} permits the models {', '.join(self.models)}, but not {model[:128]!r}",
                key=self.key_id,
                models=list(self.models),
            )

    def require_wide(self, what: str) -> None:
        """Raise ForbiddenError unless the key is valid for all models."""
        if self.models:
            raise ForbiddenError(
                f"{what} affects all models; the key {self.name!r} permits only {', '.join(self.models)}",
                key=self.key_id,
                models=list(self.models),
            )


def may_bring_code(asker: Principal | None) -> bool:
    """Return whether a caller may publish code; without keys in use (None), every caller may."""
    return asker is None or Scope.CODE in asker.scopes


def included(scopes: Iterable[Scope]) -> frozenset[Scope]:
    """Return the scopes with all that they include."""
    return frozenset().union(*(_INCLUDED[scope] for scope in scopes))


def matches(patterns: tuple[str, ...], model: str) -> bool:
    """Return whether a model name matches a pattern, or there are no patterns; ``*`` matches any characters."""
    return not patterns or any(re.fullmatch(".*".join(map(re.escape, one.split("*"))), model) for one in patterns)


def key_id_of(token: str) -> str | None:
    """Return the id inside a key; None if it does not have the form of a key."""
    match = _TOKEN.fullmatch(token)
    return match[1] if match else None


def check_key_name(name: str) -> str:
    """Return the name if it is a valid key name.

    Raises:
        InvalidNameError: It is empty, too long, or has characters outside ``A-Z a-z 0-9 _ . @ -``.
    """
    if len(name) > KEY_NAME_MAX or not _NAME.fullmatch(name):
        raise InvalidNameError(
            f"{name[:KEY_NAME_MAX]!r} is not a valid key name; use 1 to {KEY_NAME_MAX} letters, digits, '_', '-', "
            "'.' and '@', starting with a letter or digit",
            name=name[:KEY_NAME_MAX],
        )
    return name


def check_patterns(patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the model patterns if they are valid.

    Raises:
        InvalidInputError: A pattern has characters that no model name has, or there are too many.
    """
    given = tuple(dict.fromkeys(patterns))
    if len(given) > PATTERNS_MAX:
        raise InvalidInputError(f"{len(given)} model patterns are too many; give at most {PATTERNS_MAX}")
    for pattern in given:
        if not _PATTERN.fullmatch(pattern):
            raise InvalidInputError(
                f"{pattern[:128]!r} is not a valid pattern of model names; use letters, digits, '_', '-', '.', and "
                "'*' for any characters, for example 'team-a-*'"
            )
    return given
