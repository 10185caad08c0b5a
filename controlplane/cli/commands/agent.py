"""The agent: the process beside a Triton server that owns the model repository on its disk."""

from pathlib import Path
from typing import Annotated, Any

import typer

from controlplane.cli.commands.local import (
    ConfigOption,
    EndpointOption,
    FormatOption,
    LevelOption,
    RegionOption,
    StoreOption,
    TlsCertOption,
    TlsClientCaOption,
    TlsKeyOption,
    given,
    use_config,
)
from controlplane.cli.session import Session, command

PANEL = "Run"

_GROUPS = {
    "Triton": ("triton_grpc", "repository", "embedded"),
    "Registration": ("join", "advertise_host"),
    "Store": ("store", "endpoint", "region"),
    "Access": ("key_file", "tls_cert", "tls_key", "tls_client_ca"),
    "Log": ("log_level", "log_format"),
}


def register(main: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        main,
        "agent",
        panel=PANEL,
        examples=(
            "tritonctl agent --name gpu-1 --triton-grpc localhost:8001 --repository /models "
            "--store s3://models/prod --key-file /run/secrets/agent-key",
            "tritonctl agent --name gpu-1 --embedded --register --host 10.0.0.7 --store s3://models/prod",
            "tritonctl agent --config agent.toml --log-format json",
        ),
        groups=_GROUPS,
    )(agent)


def agent(
    session: Session,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="Name of the server; without --register, as in the control plane's list.", show_default=False
        ),
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", "-p", min=0, max=65535, help="Port; 0 picks a free one.", show_default="8094"),
    ] = None,
    triton_grpc: Annotated[
        str | None,
        typer.Option(
            "--triton-grpc", metavar="HOST:PORT", help="gRPC service of the Triton that runs here.", show_default=False
        ),
    ] = None,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Start and supervise a Triton instead of using one that runs.")
    ] = False,
    repository: Annotated[
        Path | None,
        typer.Option(
            "--repository", help="Triton's model repository. Default: in the data folder.", show_default=False
        ),
    ] = None,
    join: Annotated[
        bool,
        typer.Option(
            "--register", help="Register in the store, so that control planes with triton.discover find the server."
        ),
    ] = False,
    advertise_host: Annotated[
        str | None,
        typer.Option(
            "--advertise-host",
            metavar="HOST",
            help="With --register: name or address of this machine for others. Default: --host.",
            show_default=False,
        ),
    ] = None,
    store: StoreOption = None,
    endpoint: EndpointOption = None,
    region: RegionOption = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--key-file",
            help="File with the key that the control plane must send. Default: CONTROLPLANE_AGENT__KEY.",
            show_default=False,
        ),
    ] = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    tls_client_ca: TlsClientCaOption = None,
    log_level: LevelOption = None,
    log_format: FormatOption = None,
    config: ConfigOption = None,
) -> None:
    """Run the agent beside a Triton server: it brings models from the bucket to the server's disk.

    The control plane tells it what to stage and to remove; the files come directly from the bucket, for which the agent
    needs read access to the blobs and nothing else. It keeps the server as it is while the control plane or the bucket
    is unreachable. One agent has one server and one model repository.
    """
    from controlplane.cli.workflows.agent import read_key, run_agent
    from controlplane.settings import Settings

    use_config(session, config)
    tls = given(cert_file=tls_cert, key_file=tls_key, client_ca_file=tls_client_ca)
    key = None if key_file is None else read_key(key_file)
    chosen: dict[str, Any] = {
        "data_dir": session.folder(),
        "agent": {
            **given(name=name, host=host, port=port, key=key, grpc_url=triton_grpc),
            **given(register_server=join or None, advertise_host=advertise_host),
            **({"tls": tls} if tls else {}),
        },
        "store": given(url=store, endpoint_url=endpoint, region=region),
        "triton": given(embedded=embedded or None, repository=repository),
        **given(log_level=log_level, log_format=log_format),
    }
    run_agent(session, Settings(**chosen))
