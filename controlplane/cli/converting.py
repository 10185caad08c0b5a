"""Conversions and validations: the requests behind the commands."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlplane.cli.client import Client
from controlplane.cli.output import Output
from controlplane.cli.progress import Bar, follow
from controlplane.cli.publishing import SAMPLES_NAME, PublishOptions, model_name, publish, send
from controlplane.cli.records import Operation
from controlplane.cli.transfer import Journal, LocalFile, fingerprint, upload
from controlplane.domain.manifest import FileEntry
from controlplane.errors import InvalidArtifactError, InvalidInputError


@dataclass(frozen=True, slots=True)
class Conversion:
    """What to convert to and how; ``options`` is `converters.options.ConversionOptions` in JSON."""

    target: str
    options: dict[str, Any]
    model: str | None = None
    signature: dict[str, Any] | None = None
    samples: Path | None = None
    labels: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    reason: str = ""


def is_file(source: str) -> bool:
    """Whether the source of a conversion is a path rather than a reference.

    Raises:
        InvalidArtifactError: It looks like a path and nothing is there.
    """
    path = Path(source)
    if path.exists():
        return True
    if "/" in source or "\\" in source:
        raise InvalidArtifactError(f"{source}: there is no such file or folder", path=source)
    return False


def is_artifact(source: str) -> bool:
    """Whether what is to be validated is a path rather than a reference; ``model.onnx`` is meant as a file.

    Raises:
        InvalidArtifactError: It looks like a path and nothing is there.
    """
    found = is_file(source)
    if not found and Path(source).suffix and ":" not in source and "@" not in source:
        raise InvalidArtifactError(
            f"{source}: there is no such file or folder; a version is named like vad:7 or vad@champion", path=source
        )
    return found


def convert_and_publish(
    client: Client,
    source: str,
    local: Path | None,
    conversion: Conversion,
    data_dir: Path,
    out: Output,
    *,
    timeout: float | None,
) -> dict[str, Any]:
    """Convert a version, or publish a local file and convert that; return the operation's result."""
    if local is not None:
        published = publish(
            client,
            conversion.model or model_name(local),
            local,
            PublishOptions(
                format="pytorch" if conversion.options.get("factory") else None,
                signature=conversion.signature,
                samples=conversion.samples,
                trust=bool(conversion.options.get("trust")),
                reason=conversion.reason,
            ),
            data_dir,
            out,
        )
        source = published["reference"]
        out.line(f"published the original as {source}")
    body: dict[str, Any] = {
        "source": source,
        "target": conversion.target,
        "options": conversion.options,
        "labels": conversion.labels,
        "metrics": conversion.metrics,
        "aliases": list(conversion.aliases),
        "reason": conversion.reason,
    }
    if conversion.model is not None:
        body["model"] = conversion.model
    if conversion.signature is not None:
        body["signature"] = conversion.signature
    if conversion.samples is not None:
        body |= {"upload_id": _send_samples(client, conversion.samples, data_dir, out), "samples": SAMPLES_NAME}
    operation = client.read(Operation, client.post("/v1/conversions", body))
    return follow(client, operation, out, timeout=timeout).result or {}


def _send_samples(client: Client, samples: Path, data_dir: Path, out: Output) -> str:
    with Bar(out) as bar:
        (local,) = fingerprint(samples, bar)
        entry = FileEntry(path=SAMPLES_NAME, sha256=local.entry.sha256, size_bytes=local.entry.size_bytes)
        files = (LocalFile(entry, samples),)
        return upload(client, files, bar, Journal(data_dir, client.url, files)).id


def validate_artifact(
    client: Client, path: Path, samples: Path | None, body: dict[str, Any], data_dir: Path, out: Output
) -> dict[str, Any]:
    """Upload an artifact, have it checked, drop it again, and return the report."""
    sent, journal = send(client, path, samples, data_dir, out)
    try:
        request = {key: value for key, value in body.items() if value is not None} | {"upload_id": sent.id}
        if samples is not None:
            request["samples"] = SAMPLES_NAME
        operation = client.read(Operation, client.post("/v1/validations", request))
        return follow(client, operation, out).result or {}
    finally:
        client.delete(f"/v1/uploads/{sent.id}")
        journal.clear()


def validate_version(
    client: Client, reference: str, samples: Path | None, body: dict[str, Any], out: Output
) -> dict[str, Any]:
    """Have a published version checked on its golden samples' inputs; return the report.

    Raises:
        InvalidInputError: Samples were given, too.
    """
    if samples is not None:
        raise InvalidInputError(f"{reference} is run on its own golden samples; --samples is for files")
    request = {key: value for key, value in body.items() if value is not None} | {"reference": reference}
    operation = client.read(Operation, client.post("/v1/validations", request))
    return follow(client, operation, out).result or {}
