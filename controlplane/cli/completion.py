"""Completion of the names of models and servers from the running control plane; fast, and silent if none runs."""

import json
from urllib.parse import urlsplit

import typer

from controlplane.cli.session import Session

_SECONDS = 0.7


def models(context: typer.Context, incomplete: str) -> list[str]:
    """Complete a model's name, and after it ``:`` or ``@``."""
    name, colon, _ = incomplete.partition(":")
    if colon:
        return [f"{name}:{entry['number']}" for entry in _items(context, f"/v1/models/{name}/versions?limit=100")]
    return [entry["name"] for entry in _items(context, "/v1/models?limit=200") if entry["name"].startswith(incomplete)]


def deployments(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a deployed model."""
    return [
        entry["model"]
        for entry in _items(context, "/v1/deployments?limit=200")
        if entry["model"].startswith(incomplete)
    ]


def servers(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a Triton server."""
    return [entry["name"] for entry in _items(context, "/v1/servers") if entry["name"].startswith(incomplete)]


def _items(context: typer.Context, path: str) -> list[dict[str, str]]:
    import http.client  # slow, and no command needs it

    try:
        parts = urlsplit(_session(context).find_url())
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_SECONDS)
        connection.request("GET", path)
        items: list[dict[str, str]] = json.loads(connection.getresponse().read())["items"]
    except Exception:  # noqa: BLE001 - a completion that fails must not write into the line being typed
        return []
    return items


def _session(context: typer.Context) -> Session:
    """Return a session with the common options; completion runs no command, so nothing has merged them."""
    session = Session()
    for level in (context.find_root(), context):
        session.merge({name: level.params.get(name) for name in ("url", "data_dir")}, level)
    return session
