"""Triton servers and events."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from controlplane.cli.session import Session, command

if TYPE_CHECKING:
    from controlplane.domain.states import ServerStatus

PANEL = "Operate"


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    command(
        app,
        "servers",
        panel=PANEL,
        examples=("tritonctl servers --watch", "tritonctl servers -o json | jq -r .[0].grpc_url"),
        watch=True,
    )(servers)
    command(
        app,
        "events",
        panel=PANEL,
        examples=("tritonctl events", "tritonctl events resnet --type Warning", "tritonctl events --follow"),
    )(events)


def servers(session: Session) -> None:
    """Show the Triton servers: addresses, state and loaded models."""
    from controlplane.cli.output import ago
    from controlplane.cli.views.health import problems
    from controlplane.domain.states import ServerStatus

    out = session.out()
    with session.client() as client:
        documents = client.get("/v1/servers")["items"]
        found = [client.read(ServerStatus, item) for item in documents]
    out.result(documents)
    out.table(
        ("name", "state", "grpc", "http", "metrics", "triton", "loaded", "seen", "message"),
        (
            (
                server.name,
                _state(server),
                server.grpc_url,
                server.http_url,
                server.metrics_url,
                server.triton_version,
                ", ".join(f"{one.model}:{one.version}" for one in server.models if one.state == "READY"),
                ago(server.observed_at),
                server.message.partition("\n")[0] or problems(server.conditions),
            )
            for server in found
        ),
        empty="this control plane has no Triton servers",
        wide=("http", "metrics", "triton"),
    )
    for server in found:
        for advisory in server.advisories:
            out.line(f"{server.name}: {advisory}", style="yellow")


def events(
    session: Session,
    subject: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Show only events of this model or server.", show_default=False),
    ] = None,
    kind: Annotated[
        Literal["Normal", "Warning"] | None, typer.Option("--type", help="Show only events of this type.")
    ] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Show only events with this reason.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Also print new events, until Ctrl-C.")] = False,
    after: Annotated[int, typer.Option("--after", min=0, help="Show only events with a greater id.")] = 0,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=500, help="Maximum number of events; the newest are shown.")
    ] = 50,
) -> None:
    """Show events, oldest first: what changed and why. With `-o json --follow`, each line is one event in JSON."""
    from controlplane.cli.output import ago
    from controlplane.domain.states import Event

    out = session.out()
    given: dict[str, Any] = {"subject": subject, "type": kind, "reason": reason}
    chosen = {name: value for name, value in given.items() if value is not None}
    with session.client() as client:
        documents = client.get("/v1/events", after=after, limit=limit, **chosen)["items"]
        found = [client.read(Event, item) for item in documents]
        if not follow:
            out.result(documents)
            out.table(
                ("when", "type", "reason", "subject", "message"),
                ((ago(one.at), one.type, one.reason, one.subject, one.message) for one in found),
                empty="no events",
            )
            return
        for event in found:
            _print(session, event)
        last = found[-1].id if found else after
        # Silence is normal here: the server's heartbeat keeps the connection open.
        for _, document in client.events("/v1/events", after=last, follow="true", read_seconds=120.0, **chosen):
            _print(session, client.read(Event, document))


def _state(server: "ServerStatus") -> str:
    cordon = server.cordon
    if cordon is None:
        return server.state.value
    return f"{server.state.value}, {'drained' if cordon.drained else 'draining' if cordon.drain else 'cordoned'}"


def _print(session: Session, event: object) -> None:
    from rich.text import Text

    from controlplane.domain.states import Event

    assert isinstance(event, Event)
    out = session.out()
    if out.json_wanted:
        out.event(event)
        return
    style = "yellow" if event.type == "Warning" else ""
    when = event.at.astimezone().strftime("%H:%M:%S")
    out.line(Text(f"{when}  {event.reason:<20}  {event.subject:<20}  {event.message}", style=style))
