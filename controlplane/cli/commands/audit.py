"""The audit log: who changed what, when and why."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from controlplane.cli.session import Session, command

PANEL = "Operate"


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(
        app,
        "audit",
        panel=PANEL,
        examples=("tritonctl audit --since 7d --model resnet", "tritonctl audit --since 24h -o json >> audit.jsonl"),
    )(audit)


def audit(
    session: Session,
    since: Annotated[
        str,
        typer.Option("--since", help="Only changes in this time (24h, 7d) or since a date (2026-01-31, UTC)."),
    ] = "24h",
    until: Annotated[
        str | None, typer.Option("--until", help="Only changes before this, in the same form.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Only this model and its deployment.", show_default=False)
    ] = None,
) -> None:
    """Show who changed what, when and why, oldest first: models, aliases, deployments, API keys and cordons.

    With `-o json`, each line is one change in JSON. An API key needs the scope `audit`.
    """
    now = datetime.now(UTC)
    given: dict[str, Any] = {
        "since": _moment(since, now, "--since"),
        "until": _moment(until, now, "--until") if until else None,
        "model": model,
    }
    out = session.out()
    shown = 0
    with session.client() as client:
        chosen = {name: value for name, value in given.items() if value is not None}
        for record in client.items("/v1/audit", **chosen):
            shown += 1
            if out.json_wanted:
                out.event(record)
                continue
            at = datetime.fromisoformat(record["at"]).astimezone()
            what = f"{record['kind']} {record['name']}".strip()
            why = record["error"] or record["reason"]
            out.line(f"{at:%Y-%m-%d %H:%M:%S}  {record['actor']:<20}  {what}  #{record['revision']}  {why}")
    if not shown:
        out.note(f"no changes since {given['since']}")


def _moment(text: str, now: datetime, option: str) -> str:
    from controlplane.domain.durations import parse_duration
    from controlplane.errors import InvalidInputError

    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        try:
            at = now - timedelta(seconds=parse_duration(text))
        except (InvalidInputError, OverflowError) as error:
            raise InvalidInputError(
                f"{option} {text!r} is neither a duration nor a date; use for example 24h, 7d or 2026-01-31T12:00"
            ) from error
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).isoformat()
