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
        description="Who it is for; every history names it."
    )
    scopes: list[Scope] = Field(
        min_length=1, max_length=8, description="read, infer, deploy (and read), code (and deploy), admin (all)."
    )
    models: list[Annotated[str, StringConstraints(min_length=1, max_length=128)]] = Field(
        default_factory=list, max_length=PATTERNS_MAX, description="Patterns of the models it is for; none: all."
    )
    expires_at: AwareDatetime | None = Field(default=None, description="When it ends; null: never.")
    rate_per_second: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = Field(
        default=None, description="Requests per second on each instance; null: the default."
    )
    burst: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="Requests at once; null: the default."
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

    id: str = Field(description="Names the key; no secret.")
    name: str = Field(description="Who it is for.")
    scopes: list[Scope] = Field(description="What it is good for.")
    models: list[str] = Field(description="Patterns of the models it is for; none: all.")
    state: str = Field(description="active, expired or revoked.")
    created_at: datetime = Field(description="When it was made (UTC).")
    created_by: str = Field(description="Who made it.")
    expires_at: datetime | None = Field(description="When it ends (UTC); null: never.")
    revoked_at: datetime | None = Field(description="When it was revoked (UTC); null: it was not.")
    revoked_by: str = Field(description="Who revoked it.")
    rate_per_second: float | None = Field(description="Requests per second on each instance; null: the default.")
    burst: int | None = Field(description="Requests at once; null: the default.")

    @classmethod
    def of(cls, key: ApiKey, now: datetime) -> "KeyView":
        """Return the public form of a key."""
        state = "revoked" if key.revoked_at else "expired" if key.why_not(now) else "active"
        shown = key.model_dump(exclude={"digest"})
        return cls.model_validate({**shown, "state": state})


class NewKey(BaseModel):
    """A new key with its secret, which is shown only here."""

    key: KeyView = Field(description="The key as it is listed from now on.")
    secret: str = Field(description="What the client sends as `Authorization: Bearer …`. It cannot be read again.")


class KeyList(BaseModel):
    """All keys, oldest first."""

    items: list[KeyView] = Field(description="The keys, revoked ones too.")
