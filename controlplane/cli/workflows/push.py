"""Common steps of `push`, `validate` and a conversion of a local file: from a path to an upload to an operation."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlplane.cli.output import Output
from controlplane.cli.progress import Bar, follow
from controlplane.cli.workflows.upload import Journal, LocalFile, fingerprint, upload
from controlplane.client.errors import OperationFailedError
from controlplane.client.http import Client, segment
from controlplane.client.models import Operation, Upload
from controlplane.domain.manifest import FileEntry, Origin
from controlplane.domain.model_directory import CONFIG_FILE, version_folders
from controlplane.domain.names import validate_model_name
from controlplane.errors import InvalidInputError

SAMPLES_NAME = "tritonctl-samples.npz"
"""The name of ``--samples`` inside an upload; it does not become a file of the version."""

_DAMAGED_CODES = frozenset({"digest-mismatch", "not-found"})
"""Codes of a publication's failure that is due to a damaged or lost file in the store."""

_SUFFIXES = (
    *(".onnx", ".pt2", ".pt", ".pth", ".jit", ".ts", ".torchscript"),
    *(".safetensors", ".skops", ".pkl", ".joblib", ".json", ".ubj", ".txt"),
)


@dataclass(frozen=True, slots=True)
class PublishOptions:
    """A publisher's options beyond the files; ``None`` and empty values leave the choice to the server."""

    format: str | None = None
    signature: dict[str, Any] | None = None
    batched: bool | None = None
    samples: Path | None = None
    sample_count: int | None = None
    seed: int | None = None
    golden: bool = True
    labels: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    reason: str = ""
    trust: bool = False
    direct: bool = False
    force: bool = False
    version_folder: int | None = None
    number: int | None = None
    origin: Origin | None = None
    depends_on: tuple[str, ...] = ()

    def body(self) -> dict[str, Any]:
        """Return the request's fields that were given."""
        given = {
            "number": self.number,
            "format": self.format,
            "signature": self.signature,
            "batched": self.batched,
            "samples": SAMPLES_NAME if self.samples else None,
            "sample_count": self.sample_count,
            "seed": self.seed,
            "golden": None if self.golden else False,
            "labels": self.labels or None,
            "metrics": self.metrics or None,
            "aliases": list(self.aliases) or None,
            "reason": self.reason or None,
            "trust": self.trust or None,
            "force": self.force or None,
            "origin": self.origin.model_dump(mode="json", exclude_none=True) if self.origin else None,
            "depends_on": list(self.depends_on) or None,
        }
        return {key: value for key, value in given.items() if value is not None}


def model_name(path: Path) -> str:
    """Derive a model's name from a file's: ``My Net (v2).onnx`` becomes ``My-Net-v2``.

    Raises:
        InvalidInputError: No part of the file's name is valid in a model's name.
    """
    name = path.absolute().name
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            name = name[: -len(suffix)]
            break
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._")[:128]
    if not name:
        raise InvalidInputError(
            f"failed to derive a model name from {path.name!r}; give one: `tritonctl push NAME {path}`"
        )
    return validate_model_name(name)


def version_folder(path: Path, number: int | None) -> int | None:
    """Return the version folder of a model directory to publish; None if the path is not a model directory.

    Args:
        path: The file or folder to publish.
        number: The folder that the user names.

    Raises:
        InvalidInputError: There is no such folder, or there are several and none is named.
    """
    folders = []
    if (path / CONFIG_FILE).is_file():
        folders = version_folders(f"{one.name}/x" for one in path.iterdir() if one.is_dir())
    if number is None and len(folders) <= 1:
        return folders[0] if folders else None
    have = ", ".join(map(str, folders)) or "none"
    if number is None:
        raise InvalidInputError(
            f"{path} has the version folders {have}; a version is one of them: choose it with --version "
            f"{folders[-1]}, or import all of them with `tritonctl import`"
        )
    if number not in folders:
        raise InvalidInputError(
            f"{path} has no version folder {number}; --version is a numbered folder beside {CONFIG_FILE}, and the "
            f"folders are: {have}"
        )
    return number


def key_values(pairs: list[str], option: str) -> dict[str, str]:
    """Parse ``key=value`` options.

    Raises:
        InvalidInputError: An option has no ``=``.
    """
    read = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise InvalidInputError(f"{option} {pair!r} is invalid; use {option} key=value")
        read[key.strip()] = value
    return read


def figures(pairs: list[str]) -> dict[str, float]:
    """Parse ``key=number`` options.

    Raises:
        InvalidInputError: A value is not a number.
    """
    read = {}
    for key, value in key_values(pairs, "--metric").items():
        try:
            read[key] = float(value)
        except ValueError:
            raise InvalidInputError(f"--metric {key}={value!r}: {value!r} is not a number") from None
    return read


def send(
    client: Client,
    path: Path,
    samples: Path | None,
    data_dir: Path,
    out: Output,
    *,
    direct: bool = False,
    version_folder: int | None = None,
) -> tuple[Upload, Journal]:
    """Hash a file or folder and upload it to the server, or (``direct``) to its bucket."""
    with Bar(out) as bar:
        files = fingerprint(path, bar, version_folder=version_folder)
        if samples is not None:
            (local,) = fingerprint(samples, bar)
            entry = FileEntry(path=SAMPLES_NAME, sha256=local.entry.sha256, size_bytes=local.entry.size_bytes)
            files = (*files, LocalFile(entry, samples))
        journal = Journal(data_dir, client.url, files)
        return upload(client, files, bar, journal, direct=direct), journal


def publish(
    client: Client, name: str, path: Path, options: PublishOptions, data_dir: Path, out: Output
) -> dict[str, Any]:
    """Upload, publish, wait for the publication, and return the operation's result.

    If the store has a damaged copy of a file that was therefore not sent, the file is sent after all, which repairs the
    store's copy.
    """
    try:
        return _publish(client, name, path, options, data_dir, out)
    except OperationFailedError as error:
        if error.code not in _DAMAGED_CODES:
            raise
        out.note(f"note: {error.message}; sending the file again", style="yellow")
        return _publish(client, name, path, options, data_dir, out)


def _publish(
    client: Client, name: str, path: Path, options: PublishOptions, data_dir: Path, out: Output
) -> dict[str, Any]:
    sent, journal = send(
        client,
        path,
        options.samples,
        data_dir,
        out,
        direct=options.direct,
        version_folder=options.version_folder,
    )
    body = {"upload_id": sent.id, **options.body()}
    operation = client.read(Operation, client.post(f"/v1/models/{segment(name)}/versions", body))
    finished = follow(client, operation, out)
    journal.clear()
    return finished.result or {}
