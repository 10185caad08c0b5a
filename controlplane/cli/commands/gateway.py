"""The gateway: its state, and a gateway as a process of its own."""

from typing import Annotated, Any

import typer

from controlplane.cli.commands.local import (
    ConfigOption,
    EndpointOption,
    FormatOption,
    InsecureOption,
    LevelOption,
    RegionOption,
    StoreOption,
    given,
    parse_server,
    use_config,
)
from controlplane.cli.session import Session, command

PANEL = "Operate"
_PORTS = {"http_port": 8091, "grpc_port": 8092}
"""As of `tritonctl up`; other gateways pick free ports by default."""

app = typer.Typer()


def register(main: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        None,
        panel=PANEL,
        examples=("tritonctl gateway", "tritonctl gateway -o json | jq -r .http_url"),
        watch=True,
    )(gateway)
    command(
        app,
        "serve",
        panel=PANEL,
        examples=(
            "tritonctl gateway serve --store s3://models/prod --triton gpu0=triton0:8001,http://triton0:8000",
            "tritonctl gateway serve --store s3://models/prod --endpoint http://minio:9000 "
            "--triton gpu0=triton0:8001,http://triton0:8000 --triton gpu1=triton1:8001,http://triton1:8000",
        ),
    )(serve)
    main.add_typer(app, name="gateway", rich_help_panel=PANEL)


def gateway(session: Session) -> None:
    """Show the gateway: addresses, the route and the request counts of each model, and waiting requests.

    `tritonctl gateway serve` runs a gateway as a process of its own.
    """
    from controlplane.cli.output import size
    from controlplane.client.models import GatewayView

    out = session.out()
    with session.client() as client:
        document = client.get("/v1/gateway")
        view = client.read(GatewayView, document)
    out.result(document)
    restarts = f", restarted {view.restarts} time{'s' * (view.restarts > 1)}" if view.restarts else ""
    out.facts(
        (
            ("http", view.http_url),
            ("grpc", view.grpc_url + (" (TLS)" if view.tls else "")),
            ("haproxy's metrics", view.metrics_url),
            ("haproxy", f"{'ready' if view.ready else 'not ready'}{restarts}"),
            ("waiting", f"{view.waiting_requests} requests, {size(view.waiting_bytes)}"),
        )
    )
    out.line()
    out.table(
        ("model", "route", "servers", "direct", "activator", "waiting"),
        (
            (
                route.model,
                route.way + (f" ({route.measured_share:.2%} measured)" if route.way == "split" else ""),
                ", ".join(route.servers) or "-",
                str(route.direct_requests),
                str(route.activator_requests),
                str(route.waiting),
            )
            for route in view.models
        ),
        empty="no model is routed; a deployed model is loaded when it is requested",
    )


def serve(
    session: Session,
    host: Annotated[
        str | None,
        typer.Option("--host", help="Address to listen on, for all three ports.", show_default="127.0.0.1"),
    ] = None,
    http_port: Annotated[
        int | None, typer.Option("--http-port", min=0, max=65535, help="Port for HTTP.", show_default="8091")
    ] = None,
    grpc_port: Annotated[
        int | None, typer.Option("--grpc-port", min=0, max=65535, help="Port for gRPC.", show_default="8092")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", "-p", min=0, max=65535, help="Port for health, readiness and metrics.", show_default="8090"
        ),
    ] = None,
    store: StoreOption = None,
    endpoint: EndpointOption = None,
    region: RegionOption = None,
    triton: Annotated[
        list[str] | None,
        typer.Option(
            "--triton",
            metavar="NAME=GRPC,HTTP",
            help="A Triton server: the name that it has on the control plane, and its URLs. Repeatable.",
            show_default=False,
        ),
    ] = None,
    log_level: LevelOption = None,
    log_format: FormatOption = None,
    config: ConfigOption = None,
    insecure: InsecureOption = False,
) -> None:
    """Run a gateway as a process of its own, beside the control planes that use the same bucket.

    It forwards inference requests and answers `/healthz`, `/readyz` and `/metrics`, and nothing else. It never becomes
    the leader and changes no server. It learns deployments, rollouts and API keys from the bucket, and what is loaded
    from the servers. A port 0 picks a free one. After SIGTERM it finishes the requests in flight.
    """
    from controlplane.cli.workflows.up import run_here
    from controlplane.settings import Settings

    use_config(session, config)
    chosen: dict[str, Any] = {
        "role": "gateway",
        "data_dir": session.folder(),
        "api": given(port=port, host=host),
        "auth": given(mode="off" if insecure else None),
        "store": given(url=store, endpoint_url=endpoint, region=region),
        "triton": given(servers=[parse_server(text, least=2) for text in triton] if triton else None),
        **given(log_level=log_level, log_format=log_format),
    }
    ports = given(host=host, http_port=http_port, grpc_port=grpc_port)
    configured = Settings(**chosen).gateway.model_fields_set
    defaults = {name: number for name, number in _PORTS.items() if name not in configured}
    run_here(session, Settings(**chosen, gateway=defaults | ports))
