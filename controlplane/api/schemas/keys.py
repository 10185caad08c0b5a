"""API keys."""

from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from controlplane.domain.access import KEY_NAME_MAX, PATTERNS_MAX, ApiKey, Scope
from controlplane.registry.keys import KeyRequest


class KeyRequestBody(BaseModel):
    """Create an API key."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "ci", "scopes": ["deploy"], "models": ["team-a-*"], "rate_per_second": 50}]
        },
    )

    name: Annotated[str, StringConstraints(min_length=1, max_length=KEY_NAME_MAX)] = Field(
        description="Name of the key's owner; every history records it."
    )
    scopes: list[Scope] = Field(
        min_length=1, max_length=8, description="read, infer, deploy (and read), code (and deploy), audit, admin (all)."
    )
    models: list[Annotated[str, StringConstraints(min_length=1, max_length=128)]] = Field(
        default_factory=list,
        max_length=PATTERNS_MAX,
        description="Patterns of the models that the key can access; empty: all models.",
    )
    expires_at: AwareDatetime | None = Field(default=None, description="Expiry time; null: never.")
    rate_per_second: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = Field(
        default=None, description="Maximum requests per second on each instance; null: the default."
    )
    burst: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="Burst size, in requests; null: the default."
    )

    def to_request(self) -> KeyRequest:
        """Return the request to the registry."""
        return KeyRequest(
            name=self.name,
            scopes=tuple(self.scopes),
            models=tuple(self.models),
            expires_at=self.expires_at,
            rate_per_second=self.rate_per_second,
            burst=self.burst,
        )


class KeyView(BaseModel):
    """A key, without its secret."""

    id: str = Field(description="Identifier of the key; not secret.")
    name: str = Field(description="Name of the key's owner.")
    scopes: list[Scope] = Field(description="Scopes of the key.")
    models: list[str] = Field(description="Patterns of the models that the key can access; empty: all models.")
    state: str = Field(description="active, expired or revoked.")
    created_at: datetime = Field(description="When it was created (UTC).")
    created_by: str = Field(description="Who created it.")
    expires_at: datetime | None = Field(description="Expiry time (UTC); null: never.")
    revoked_at: datetime | None = Field(description="When it was revoked (UTC); null: not revoked.")
    revoked_by: str = Field(description="Who revoked it.")
    rate_per_second: float | None = Field(
        description="Maximum requests per second on each instance; null: the default."
    )
    burst: int | None = Field(description="Burst size, in requests; null: the default.")

    @classmethod
    def of(cls, key: ApiKey, now: datetime) -> "KeyView":
        """Return the public form of a key."""
        state = "revoked" if key.revoked_at else "expired" if key.why_not(now) else "active"
        shown = key.model_dump(exclude={"digest"})
        return cls.model_validate({**shown, "state": state})


class NewKey(BaseModel):
    """A new key with its secret, which is shown only here."""

    key: KeyView = Field(description="The key, without the secret.")
    secret: str = Field(
        description="The token that the client sends as `Authorization: Bearer …`. It cannot be read again."
    )


class KeyList(BaseModel):
    """All keys, oldest first."""

    items: list[KeyView] = Field(description="The keys, including revoked ones.")
