"""Commands that run the control plane: `up`, `down`, `serve`."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from controlplane.cli.session import Session, command
from controlplane.defaults import CONFIG_VARIABLE

PANEL = "Run"

PortOption = Annotated[
    int | None,
    typer.Option("--port", "-p", min=0, max=65535, help="Port of the API; 0 picks a free one.", show_default="8090"),
]
HostOption = Annotated[str | None, typer.Option("--host", help="Address to listen on.", show_default="127.0.0.1")]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="URL of the store: file:///path or s3://bucket/prefix. Default: in the data folder."),
]
EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint", help="URL of the S3 endpoint, for example MinIO or Ceph RGW. Default: AWS.", show_default=False
    ),
]
RegionOption = Annotated[
    str | None, typer.Option("--region", help="S3 region. Default: from the AWS settings.", show_default=False)
]
InsecureOption = Annotated[
    bool,
    typer.Option(
        "--insecure-no-auth", help="Never require an API key: any client that reaches the port has all rights."
    ),
]
TlsCertOption = Annotated[
    Path | None,
    typer.Option("--tls-cert", help="Certificate chain (PEM) of the server; turns on HTTPS.", show_default=False),
]
TlsKeyOption = Annotated[
    Path | None,
    typer.Option(
        "--tls-key", help="Private key (PEM) of the certificate. Default: in the same file.", show_default=False
    ),
]
TlsClientCaOption = Annotated[
    Path | None,
    typer.Option(
        "--tls-client-ca",
        help="CA certificates (PEM); only clients with a certificate of these authorities may connect.",
        show_default=False,
    ),
]
LevelOption = Annotated[
    Literal["debug", "info", "warning", "error"] | None,
    typer.Option("--log-level", help="Minimum level of messages logged to stderr."),
]
FormatOption = Annotated[
    Literal["text", "json"] | None,
    typer.Option("--log-format", help="Form of the log on stderr: text, or one JSON object a line."),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar=CONFIG_VARIABLE,
        metavar="FILE",
        help="Settings as a TOML file. Environment variables and options have precedence.",
    ),
]

_UP_GROUPS = {
    "Store": (
        "store",
        "endpoint",
    ),
    "Ports": (
        "port",
        "host",
        "http_port",
        "grpc_port",
        "metrics_port",
        "gateway_http_port",
        "gateway_grpc_port",
    ),
    "Access": (
        "tls_cert",
        "tls_key",
        "tls_client_ca",
        "insecure",
    ),
    "Log": (
        "log_level",
        "log_format",
    ),
}

_SERVE_GROUPS = {
    "Store and servers": (
        "store",
        "endpoint",
        "region",
        "triton",
    ),
    "Access": (
        "tls_cert",
        "tls_key",
        "tls_client_ca",
        "insecure",
    ),
    "Log": (
        "log_level",
        "log_format",
    ),
}


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        "up",
        panel=PANEL,
        examples=(
            "tritonctl up",
            "tritonctl up --detach",
            "tritonctl up --data-dir ./models --port 0 --detach",
            "tritonctl up --host 0.0.0.0 --tls-cert server.pem --tls-key server.key",
        ),
        groups=_UP_GROUPS,
    )(up)
    command(app, "down", panel=PANEL, examples=("tritonctl down", "tritonctl down --data-dir ./models"))(down)
    command(
        app,
        "serve",
        panel=PANEL,
        examples=(
            "tritonctl serve --store s3://models/prod --endpoint http://minio:9000 "
            "--triton gpu0=triton:8001,http://triton:8000,http://triton:8002/metrics,/models",
            "tritonctl serve --config controlplane.toml --log-format json",
        ),
        groups=_SERVE_GROUPS,
    )(serve)


def up(
    session: Session,
    port: PortOption = None,
    host: HostOption = None,
    store: StoreOption = None,
    endpoint: EndpointOption = None,
    http_port: Annotated[
        int, typer.Option("--triton-http-port", min=0, help="Triton's HTTP port; 0 picks a free one.")
    ] = 0,
    grpc_port: Annotated[
        int, typer.Option("--triton-grpc-port", min=0, help="Triton's gRPC port; 0 picks a free one.")
    ] = 0,
    metrics_port: Annotated[
        int, typer.Option("--triton-metrics-port", min=0, help="Triton's metrics port; 0 picks a free one.")
    ] = 0,
    gateway_http_port: Annotated[
        int | None,
        typer.Option(
            "--http-port",
            min=0,
            max=65535,
            help="The gateway's HTTP port; 0 picks a free one.",
            show_default="API port + 1",
        ),
    ] = None,
    gateway_grpc_port: Annotated[
        int | None,
        typer.Option(
            "--grpc-port",
            min=0,
            max=65535,
            help="The gateway's gRPC port; 0 picks a free one.",
            show_default="API port + 2",
        ),
    ] = None,
    gateway: Annotated[
        bool | None,
        typer.Option(
            "--gateway/--no-gateway",
            help="Whether to run the gateway for inference.",
            show_default="if HAProxy is installed",
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Run in the background and return when it is ready.")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="With --detach: maximum seconds until it is ready.")
    ] = 120.0,
    insecure: InsecureOption = False,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    tls_client_ca: TlsClientCaOption = None,
    log_level: LevelOption = None,
    log_format: FormatOption = None,
    config: ConfigOption = None,
) -> None:
    """Run everything on this machine: Triton, the store in a folder, the API and the gateway.

    Other commands find the control plane through the data folder. It runs until Ctrl-C, or with `--detach` until
    `tritonctl down`.
    """
    from controlplane.cli.workflows.setup import ensure
    from controlplane.cli.workflows.up import run_here, start_detached
    from controlplane.settings import Settings

    use_config(session, config)
    data_dir = session.folder()
    ensure(session.out(), session.settings(store=None, endpoint=None).triton.root)
    if detach:
        options: dict[str, object] = {
            "port": port,
            "host": host,
            "store": store,
            "endpoint": endpoint,
            "triton-http-port": http_port,
            "triton-grpc-port": grpc_port,
            "triton-metrics-port": metrics_port,
            "http-port": gateway_http_port,
            "grpc-port": gateway_grpc_port,
            "gateway": True if gateway else None,
            "no-gateway": True if gateway is False else None,
            "log-level": log_level,
            "log-format": log_format,
            "config": config and config.absolute(),
            "tls-cert": tls_cert,
            "tls-key": tls_key,
            "tls-client-ca": tls_client_ca,
            "insecure-no-auth": True if insecure else None,
        }
        start_detached(session, data_dir, options, timeout)
        return
    chosen: dict[str, Any] = {
        "data_dir": data_dir,
        "api": _api(port, host, tls_cert, tls_key, tls_client_ca),
        "auth": given(mode="off" if insecure else None),
        "store": given(url=store, endpoint_url=endpoint),
        "triton": {
            "embedded": True,
            **given(http_port=http_port or None, grpc_port=grpc_port or None, metrics_port=metrics_port or None),
        },
        "gateway": _gateway(port, gateway_http_port, gateway_grpc_port, gateway),
        **given(log_level=log_level, log_format=log_format),
    }
    run_here(session, Settings(**chosen))


def _gateway(port: int | None, http_port: int | None, grpc_port: int | None, wanted: bool | None) -> dict[str, object]:
    """Return the gateway's ports, which follow the API's (8090, 8091, 8092); if that is 0 (any), so are they."""
    default = (0, 0) if port == 0 else ((port or 8090) + 1, (port or 8090) + 2)
    return {
        "http_port": default[0] if http_port is None else http_port,
        "grpc_port": default[1] if grpc_port is None else grpc_port,
        **given(enabled=wanted),
    }


def down(
    session: Session,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="Maximum seconds to wait until it has stopped; then exit code 8.")
    ] = 60.0,
) -> None:
    """Stop the control plane that `tritonctl up` runs with this data folder, and its Triton."""
    from controlplane.cli.workflows.up import stop

    stop(session, session.folder(), timeout)


def serve(
    session: Session,
    port: PortOption = None,
    host: HostOption = None,
    store: StoreOption = None,
    endpoint: EndpointOption = None,
    region: RegionOption = None,
    triton: Annotated[
        list[str] | None,
        typer.Option(
            "--triton",
            metavar="NAME=GRPC,HTTP,METRICS,REPOSITORY",
            help="A Triton server: name, URLs, and the path of its model repository on this machine. Repeatable.",
            show_default=False,
        ),
    ] = None,
    log_level: LevelOption = None,
    log_format: FormatOption = None,
    config: ConfigOption = None,
    insecure: InsecureOption = False,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    tls_client_ca: TlsClientCaOption = None,
) -> None:
    """Run the control plane for Triton servers that run elsewhere, with a bucket as its store.

    Environment variables can set all options: CONTROLPLANE_STORE__URL, CONTROLPLANE_STORE__ENDPOINT_URL,
    CONTROLPLANE_TRITON__SERVERS (a JSON list), CONTROLPLANE_API__PORT, …; S3 credentials come from the usual AWS
    variables and files. Any number of instances can share one bucket.
    """
    from controlplane.cli.workflows.up import run_here
    from controlplane.settings import Settings

    use_config(session, config)
    chosen: dict[str, Any] = {
        "data_dir": session.folder(),
        "api": _api(port, host, tls_cert, tls_key, tls_client_ca),
        "auth": given(mode="off" if insecure else None),
        "store": given(url=store, endpoint_url=endpoint, region=region),
        "triton": given(servers=[parse_server(text) for text in triton] if triton else None),
        **given(log_level=log_level, log_format=log_format),
    }
    run_here(session, Settings(**chosen))


def use_config(session: Session, config: Path | None) -> None:
    """Make this process and those that it starts read a configuration file."""
    from controlplane.settings import read_config

    if config is None:
        return
    os.environ[CONFIG_VARIABLE] = str(config.absolute())
    folder = read_config(config).get("data_dir")
    if session.data_dir is None and isinstance(folder, str):
        session.data_dir = Path(folder)


def _api(
    port: int | None, host: str | None, tls_cert: Path | None, tls_key: Path | None, tls_client_ca: Path | None
) -> dict[str, object]:
    tls = given(cert_file=tls_cert, key_file=tls_key, client_ca_file=tls_client_ca)
    return {**given(port=port, host=host), **({"tls": tls} if tls else {})}


def given(**values: object) -> dict[str, object]:
    """Return the values that are not None."""
    return {key: value for key, value in values.items() if value is not None}


def parse_server(text: str, *, least: int = 4) -> dict[str, object]:
    """Return the settings of a server from ``NAME=GRPC,HTTP,METRICS,REPOSITORY``, of which the first parts suffice.

    Args:
        text: The option's value.
        least: The number of required parts after the name.

    Raises:
        InvalidInputError: It is not of this form.
    """
    from controlplane.errors import InvalidInputError

    kinds = ("grpc_url", "http_url", "metrics_url", "repository")
    examples = ("triton:8001", "http://triton:8000", "http://triton:8002/metrics", "/models")
    name, equals, rest = text.partition("=")
    parts = [part.strip() for part in rest.split(",")]
    found = dict(zip(kinds, parts, strict=False))
    complete = least <= len(parts) <= len(kinds) and all((name, parts[0], parts[least - 1]))
    if not equals or not complete:
        form = ",".join(("GRPC", "HTTP", "METRICS", "REPOSITORY")[:least])
        raise InvalidInputError(
            f"--triton {text!r} is invalid; use NAME={form}, for example gpu0={','.join(examples[:least])}"
        )
    return {"name": name, **{kind: value for kind, value in found.items() if value}}
