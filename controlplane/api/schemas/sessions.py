"""Sessions of browsers in the REST API."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.access import Principal, Scope


class SignIn(BaseModel):
    """Open a session with an API key or with a code of `tritonctl ui`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"api_key": "tck_…"}]})

    api_key: Annotated[str, Field(max_length=256, description="An API key.", repr=False)] = ""
    code: Annotated[str, Field(max_length=256, description="A sign-in code, usable once.", repr=False)] = ""


class SessionView(BaseModel):
    """The caller, as the page shows it and offers what its key permits."""

    required: bool = Field(description="Whether the control plane requires API keys.")
    signed_in: bool = Field(description="Whether the request has a valid session or API key.")
    name: str = Field(default="", description="Name of the key.")
    scopes: tuple[Scope, ...] = Field(default=(), description="What the key permits; all if no keys are required.")
    models: tuple[str, ...] = Field(default=(), description="Patterns of the models that it is for; empty: all.")
    csrf_token: str = Field(
        default="",
        description="Value of the header X-CSRF-Token that requests with the cookie need to change something.",
    )

    @classmethod
    def of(cls, principal: Principal, csrf_token: str = "") -> "SessionView":
        """Return the view of a caller with a key."""
        return cls(
            required=True,
            signed_in=True,
            name=principal.name,
            scopes=tuple(sorted(principal.scopes)),
            models=principal.models,
            csrf_token=csrf_token,
        )


class SignInCode(BaseModel):
    """A code that opens one session."""

    code: str = Field(description="The code.")
    expires_in_seconds: float = Field(description="How long it can be used.")
