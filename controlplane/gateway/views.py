"""The state of the gateway as the API shows it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Way = Literal["direct", "split", "activator"]


class ModelRoute(BaseModel):
    """The route of requests for one model."""

    model_config = ConfigDict(frozen=True)

    model: str = Field(description="The model.")
    way: Way = Field(
        description="fast: HAProxy to Triton. activated: through the control plane, which loads it. split: fast, but "
        "for requests that are measured in the control plane, or name a version, while a rollout is under way."
    )
    measured_share: float = Field(
        description="Share of the requests that are measured for a rollout, 0 to 1; where they are few, all are."
    )
    servers: tuple[str, ...] = Field(description="The servers on which it is proved and asked.")
    waiting: int = Field(description="Requests that wait for it to be loaded.")
    direct_requests: int = Field(default=0, description="Requests that went past Python, since HAProxy started.")
    activator_requests: int = Field(default=0, description="Requests by the control plane, since that started.")


class GatewayAddress(BaseModel):
    """The addresses of the gateway."""

    model_config = ConfigDict(frozen=True)

    http_url: str = Field(description="URL for clients of the v2 protocol over HTTP.")
    grpc_url: str = Field(description="host:port for clients over gRPC.")
    metrics_url: str = Field(description="URL of HAProxy's own Prometheus metrics.")
    tls: bool = Field(description="Whether clients must speak TLS.")
    ready: bool = Field(description="Whether HAProxy runs and answers.")


class GatewayView(GatewayAddress):
    """The gateway and its traffic."""

    restarts: int = Field(description="How often HAProxy was started again.")
    waiting_requests: int = Field(description="Requests that wait for models to be loaded.")
    waiting_bytes: int = Field(description="Bytes of requests that are held meanwhile.")
    models: tuple[ModelRoute, ...] = Field(description="The models that are open or waited for.")
