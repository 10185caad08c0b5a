"""Conversions and validations: the requests of the commands."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from controlplane.cli.output import Output
from controlplane.cli.progress import Bar, follow
from controlplane.cli.workflows.push import SAMPLES_NAME, PublishOptions, model_name, publish, send
from controlplane.cli.workflows.sources import LocalArtifact
from controlplane.cli.workflows.upload import Journal, LocalFile, fingerprint, upload
from controlplane.client.errors import ClientError, OperationFailedError
from controlplane.client.http import Client, segment
from controlplane.client.models import Model, Operation
from controlplane.domain.manifest import FileEntry
from controlplane.errors import ControlPlaneError, InvalidArtifactError, InvalidInputError
from controlplane.sources.registry import is_uri


@dataclass(frozen=True, slots=True)
class Conversion:
    """The target and the options of a conversion; ``options`` is `converters.options.ConversionOptions` in JSON."""

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
    """Return whether the source of a conversion is a path or URI rather than a reference.

    Raises:
        InvalidArtifactError: It looks like a path that does not exist.
    """
    if is_uri(source) or Path(source).exists():
        return True
    if "/" in source or "\\" in source:
        raise InvalidArtifactError(f"no such file or folder: {source!r}", path=source)
    return False


def is_artifact(source: str) -> bool:
    """Return whether the source of a validation is a path or URI rather than a reference; ``model.onnx`` means a file.

    Raises:
        InvalidArtifactError: It looks like a path that does not exist.
    """
    found = is_file(source)
    if not found and Path(source).suffix and ":" not in source and "@" not in source:
        raise InvalidArtifactError(
            f"no such file or folder: {source!r}; for a published version, use for example vad:7 or vad@champion",
            path=source,
        )
    return found


def convert_and_publish(
    client: Client,
    source: str,
    local: LocalArtifact | None,
    conversion: Conversion,
    data_dir: Path,
    out: Output,
    *,
    timeout: float | None,
) -> dict[str, Any]:
    """Convert a version, or publish a local file and convert that; return the operation's result."""
    if local is None:
        return _convert(client, source, conversion, data_dir, out, timeout=timeout)
    if local.inputs and conversion.signature is None and "inputs" not in conversion.options:
        inputs = [spec.model_dump(mode="json") for spec in local.inputs]
        conversion = replace(conversion, options={**conversion.options, "inputs": inputs})
    published = publish(
        client,
        conversion.model or model_name(local.name),
        local.path,
        PublishOptions(
            format="pytorch" if conversion.options.get("factory") else None,
            signature=conversion.signature,
            trust=bool(conversion.options.get("trust")),
            reason=conversion.reason,
            origin=local.origin,
        ),
        data_dir,
        out,
    )
    source = published["reference"]
    out.line(f"published the original as {source}")
    try:
        return _convert(client, source, conversion, data_dir, out, timeout=timeout)
    except (OperationFailedError, ClientError, InvalidInputError):
        _withdraw(client, published, out)
        raise


def _withdraw(client: Client, published: dict[str, Any], out: Output) -> None:
    """Delete the original whose conversion failed, and its model if it has no other version."""
    name, number = published["model"], published["version"]
    path = f"/v1/models/{segment(name)}"
    try:
        client.delete(f"{path}/versions/{number}", reason="its conversion failed")
        live = [version for version in client.fetch(Model, path).versions if not version.deleted]
        if number == 1 and not live:
            client.delete(path, reason="its conversion failed")
    except ControlPlaneError as error:
        out.note(f"note: failed to delete the original, {name}:{number}: {error}", style="yellow")
    else:
        out.note(f"deleted the original, {name}:{number}", style="dim")


def _convert(
    client: Client, source: str, conversion: Conversion, data_dir: Path, out: Output, *, timeout: float | None
) -> dict[str, Any]:
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
    """Upload an artifact, validate it, delete the upload, and return the report."""
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
    """Validate a published version on the inputs of its golden samples; return the report.

    Raises:
        InvalidInputError: Samples were given as well.
    """
    if samples is not None:
        raise InvalidInputError(f"--samples is only for files; {reference} is validated on its own golden samples")
    request = {key: value for key, value in body.items() if value is not None} | {"reference": reference}
    operation = client.read(Operation, client.post("/v1/validations", request))
    return follow(client, operation, out).result or {}
