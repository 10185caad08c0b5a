"""Documents of `tritonctl apply`: what is to exist, as a file that is kept under version control.

The form is that of Kubernetes (``apiVersion``, ``kind``, ``metadata``, ``spec``), which editors and reviewers know.
"""

import hashlib
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from controlplane.domain.access import PATTERNS_MAX, Scope
from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.texts import Description, Labels

API_VERSION = "tritonctl/v1"
DEFAULT_SET = "default"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Metadata(_Strict):
    """Identifies a document's object."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=300)] = Field(
        description="Model and Deployment: the model's name. Alias: model@alias. ApiKey: the key's name."
    )


class _Document(_Strict):
    api_version: Literal["tritonctl/v1"] = Field(alias="apiVersion", description="Version of the document's form.")
    metadata: Metadata = Field(description="Identifies the object.")


class ModelBody(_Strict):
    """What a model is to have; omitted fields are not changed."""

    description: Description | None = Field(default=None, description="What the model is for.")
    labels: Labels | None = Field(default=None, description="All labels of the model.")


class ModelDocument(_Document):
    """A model: its description and labels. Its versions are published, not declared."""

    kind: Literal["Model"] = Field(description="The kind of object.")
    spec: ModelBody = Field(default=ModelBody(), description="What the model is to have.")


class AliasBody(_Strict):
    """Where an alias is to point."""

    version: int = Field(ge=1, le=999_999_999, description="The version's number.")


class AliasDocument(_Document):
    """An alias of a model. Deployments that follow it change to its version."""

    kind: Literal["Alias"] = Field(description="The kind of object.")
    spec: AliasBody = Field(description="Where the alias is to point.")


class DeploymentBody(_Strict):
    """What is to be deployed under the model's name; omitted fields are not changed."""

    reference: str = Field(max_length=256, description="name:7, name@alias or name (its newest version).")
    settings: DeploymentSettings | None = Field(
        default=None, description="All settings: a setting that is not listed here has its default."
    )
    loaded: bool | None = Field(default=None, description="Whether the model is to be loaded.")

    def digest(self) -> str:
        """Return the SHA-256 of what a rollout or a rollback can replace: the reference and the settings."""
        return hashlib.sha256(self.model_dump_json(exclude={"loaded"}).encode()).hexdigest()


class DeploymentDocument(_Document):
    """A deployment."""

    kind: Literal["Deployment"] = Field(description="The kind of object.")
    spec: DeploymentBody = Field(description="What is to be deployed.")


class ApiKeyBody(_Strict):
    """What an API key is to permit."""

    scopes: tuple[Scope, ...] = Field(min_length=1, max_length=8, description="Scopes of the key.")
    models: tuple[Annotated[str, StringConstraints(min_length=1, max_length=128)], ...] = Field(
        default=(), max_length=PATTERNS_MAX, description="Patterns of the permitted models; empty permits all."
    )
    expires_at: AwareDatetime | None = Field(default=None, description="When the key expires; null: never.")
    rate_per_second: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = Field(
        default=None, description="Maximum requests per second on each instance; null: the default."
    )
    burst: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="Burst size, in requests; null: the default."
    )


class ApiKeyDocument(_Document):
    """An API key. Its secret is generated when the document is first applied, and shown only then."""

    kind: Literal["ApiKey"] = Field(description="The kind of object.")
    spec: ApiKeyBody = Field(description="What the key is to permit.")


Document = Annotated[ModelDocument | AliasDocument | DeploymentDocument | ApiKeyDocument, Field(discriminator="kind")]
KINDS = ("Model", "Alias", "ApiKey", "Deployment")
"""In the order in which they are applied: an alias needs its model, and a deployment may follow an alias."""
