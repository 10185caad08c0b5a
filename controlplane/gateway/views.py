"""The state of the gateway as the API shows it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Way = Literal["direct", "split", "activator"]


class ModelRoute(BaseModel):
    """The route of requests for one model."""

    model_config = ConfigDict(frozen=True)

    model: str = Field(description="The model.")
    way: Way = Field(
        description="direct: from HAProxy to Triton. activator: through the control plane, which loads the model. "
        "split: direct, except requests that name a version or that the control plane measures during a rollout."
    )
    measured_share: float = Field(
        description="Share of the requests that are measured for a rollout, 0 to 1. If there are few requests, all are."
    )
    servers: tuple[str, ...] = Field(description="The servers on which the model is proved and gets requests.")
    waiting: int = Field(description="Requests that wait for the model to be loaded.")
    direct_requests: int = Field(
        default=0, description="Requests that HAProxy sent directly to Triton since it started."
    )
    activator_requests: int = Field(
        default=0, description="Requests through the activator since the control plane started."
    )


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

    restarts: int = Field(description="Number of HAProxy restarts.")
    waiting_requests: int = Field(description="Requests that wait for models to be loaded.")
    waiting_bytes: int = Field(description="Bytes of the waiting requests in memory.")
    models: tuple[ModelRoute, ...] = Field(description="The models with an open route or waiting requests.")
