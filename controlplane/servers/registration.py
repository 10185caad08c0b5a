"""What an agent says of its server when it registers in the store. The registration is signed.

Who can write to the store could otherwise name a server of his own, which would get the models, the requests and the
agents' control key. So a registration counts only with a signature made with that key (HMAC-SHA-256 over the text).
"""

import hashlib
import hmac
import json
import re

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from controlplane.domain.validation import invalid_field
from controlplane.errors import InvalidInputError, UnauthenticatedError
from controlplane.settings import TritonServerSettings, TritonSettings

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Registration(BaseModel):
    """A server and its agent, as the agent describes them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(pattern=f"^{NAME.pattern}$", description="The server's name.")
    agent_url: str = Field(description="URL of the agent.")
    grpc_url: str = Field(description="host:port of Triton's gRPC service.")
    http_url: str = Field(default="", description="URL of Triton's HTTP service.")
    metrics_url: str = Field(default="", description="URL of Triton's metrics.")
    zone: str = Field(default="", description="Failure domain.")
    labels: dict[str, str] = Field(default_factory=dict, description="Labels that node selectors match.")
    image: str = Field(default="", description="Release of NVIDIA's image that it runs; see the server's settings.")
    version: str = Field(default="", description="Release of the agent.")
    leaving: bool = Field(default=False, description="Whether the agent stops as soon as its models are elsewhere.")

    def signed(self, key: str) -> bytes:
        """Return the registration with its signature, as it is stored."""
        text = self.model_dump_json()
        return json.dumps({"registration": text, "signature": _signature(text, key)}).encode()

    @property
    def digest(self) -> str:
        """A short digest of the content; another one means that something changed."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    @classmethod
    def verified(cls, data: bytes, key: str) -> "Registration":
        """Return a stored registration.

        Raises:
            InvalidInputError: It has another form.
            UnauthenticatedError: The signature was made with another key.
        """
        try:
            document = json.loads(data)
            text, signature = str(document["registration"]), str(document["signature"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInputError("the registration is not one of `tritonctl agent`") from error
        if not hmac.compare_digest(signature, _signature(text, key)):
            raise UnauthenticatedError("the registration is signed with another key than triton.agent_key")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise InvalidInputError(f"the registration is not valid: {invalid_field(error)}") from error

    def settings(self, common: TritonSettings) -> TritonServerSettings:
        """Return the settings of the server, with what all registered servers have in common.

        Raises:
            InvalidInputError: A value is not valid.
        """
        try:
            return TritonServerSettings(
                name=self.name,
                zone=self.zone,
                labels=self.labels,
                grpc_url=self.grpc_url,
                http_url=self.http_url,
                metrics_url=self.metrics_url,
                control_key=common.agent_control_key,
                agent_url=self.agent_url,
                agent_key=common.agent_key or SecretStr(""),
                agent_ca_file=common.agent_ca_file,
                agent_client_cert=common.agent_client_cert,
                image=self.image,
            )
        except ValidationError as error:
            raise InvalidInputError(
                f"the registration of {self.name} is not valid: {invalid_field(error)}", server=self.name
            ) from error


def _signature(text: str, key: str) -> str:
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()
