"""The list of deployments. It imports little, because `tritonctl ps` must be fast."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from controlplane.cli.output import Output, ago, size, span
from controlplane.client.rows import DeploymentRow

_COLUMNS = (
    *("model", "desired", "phase", "active", "loaded", "memory", "mode", "used", "expires", "proof", "since"),
    "message",
)
_WIDE = ("loaded", "expires", "proof", "since", "message")
_QUIET = ("Ready", "Unloaded")
"""Phases whose message is shown with ``-o wide`` only; the others are printed below the table."""


class _Proof(Protocol):
    @property
    def samples(self) -> int: ...
    @property
    def agrees(self) -> bool: ...
    @property
    def latency_seconds(self) -> float: ...


class _Expiring(Protocol):
    @property
    def held_until(self) -> datetime | None: ...
    @property
    def expires_at(self) -> datetime | None: ...


def show_deployments(out: Output, deployments: Sequence[DeploymentRow], *, filtered: bool = False) -> None:
    """Print one line for each deployment.

    Args:
        out: The output.
        deployments: The deployments.
        filtered: Whether a filter may have excluded deployments.
    """
    out.table(
        _COLUMNS,
        (_row(one) for one in deployments),
        empty="no deployment matches"
        if filtered
        else "nothing is deployed; deploy a version with `tritonctl deploy NAME --wait`",
        wide=_WIDE,
    )
    if not out.wide:
        for one in deployments:
            if _message(one) and (one.status is None or one.status.phase not in _QUIET):
                out.line(f"{one.model}: {_message(one)}")


def _row(deployment: DeploymentRow) -> tuple[object, ...]:
    status = deployment.status
    servers = status.servers if status else ()
    answers = sorted({server.serving_version for server in servers if server.serving_version is not None})
    loaded = sorted({version for server in servers for version in server.loaded_versions})
    proofs = [server.proof for server in servers if server.proof is not None]
    desired = str(deployment.spec.version)
    if "@" in deployment.spec.reference:
        desired += f" ({deployment.spec.reference.partition('@')[2]})"
    return (
        deployment.model,
        desired,
        status.phase if status else "Pending",
        ", ".join(map(str, answers)),
        ", ".join(map(str, loaded)),
        *_memory(deployment),
        proof_text(proofs[0]) if proofs else None,
        ago(deployment.at),
        _message(deployment),
    )


def _memory(deployment: DeploymentRow) -> tuple[object, ...]:
    """Return its memory over all servers, its load time, its last use, and its expiry."""
    views = deployment.memory
    held = sum(one.held_bytes for one in views)
    uses = [one.last_used_at for one in views if one.last_used_at is not None]
    first = next((one for one in views if one.held_until or one.expires_at), None)
    return (
        size(held) if held else None,
        deployment.spec.settings.mode,
        ago(max(uses)) if uses else None,
        expiry(first) if first else None,
    )


def proof_text(proof: _Proof | None) -> str | None:
    """Return the result of a proof for one cell."""
    if proof is None:
        return None
    if not proof.samples:
        return "no samples"
    return f"agrees, {span(proof.latency_seconds)}" if proof.agrees else "differs"


def expiry(memory: _Expiring) -> str:
    """Return until when a model stays loaded, if that is known."""
    if memory.held_until is not None:
        return f"held, {ago(memory.held_until)}"
    return ago(memory.expires_at)


def _message(deployment: DeploymentRow) -> str:
    return deployment.status.message if deployment.status else ""
