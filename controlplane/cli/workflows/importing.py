"""`import`: publishes every version of every model directory in a Triton model repository."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from controlplane.cli.output import Output
from controlplane.cli.progress import Bar
from controlplane.cli.references import fetch_version
from controlplane.cli.workflows.import_sources import ModelSource
from controlplane.cli.workflows.push import PublishOptions, publish
from controlplane.cli.workflows.upload import fingerprint
from controlplane.client.errors import ClientError, NotRunningError, OperationFailedError
from controlplane.client.http import Client, segment
from controlplane.client.models import Version
from controlplane.domain.model_directory import CONFIG_FILE, stored_path
from controlplane.domain.names import VERSION_MAX, Reference, validate_model_name
from controlplane.errors import ControlPlaneError, InvalidInputError, NotFoundError
from controlplane.triton.model_directory import ModelDirectory, read_model_directory

_REFUSED_NUMBER = frozenset({"conflict", "already-exists"})
"""Codes of a publication that cannot have the number of its folder."""

Content = frozenset[tuple[str, str]]
"""The files of a version: path and SHA-256."""


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one version folder.

    Attributes:
        model: The model's name, which is that of its folder.
        folder: The version folder; None if the model has none.
        result: ``imported``, ``would import``, ``unchanged`` or ``refused``.
        version: The version in the registry; None without one.
        message: What it needs, or why it was refused; empty if there is nothing to say.
    """

    model: str
    folder: int | None
    result: str
    version: int | None = None
    message: str = ""


def import_repository(
    client: Client,
    models: Sequence[ModelSource],
    source: str,
    options: PublishOptions,
    data_dir: Path,
    out: Output,
    *,
    dry_run: bool,
) -> list[Row]:
    """Publish the versions that the registry does not have yet, and return a row for each version folder.

    A version is recognized by its files, so a repeated import publishes nothing. One refused version does not stop the
    others.

    Raises:
        InvalidInputError: There is no model.
        NotRunningError: The control plane is unreachable.
    """
    if not models:
        raise InvalidInputError(
            f"{source} contains no model directory; a model repository has a folder for each model, with {CONFIG_FILE} "
            "and version folders"
        )
    rows = []
    for model in models:
        rows += _import_model(client, model, options, data_dir, out, dry_run=dry_run)
    return rows


def _import_model(
    client: Client, model: ModelSource, options: PublishOptions, data_dir: Path, out: Output, *, dry_run: bool
) -> list[Row]:
    name, numbers = model.name, model.numbers
    rows: list[Row] = []
    try:
        validate_model_name(name)
        model.check()
        if dry_run and (previews := _previews(model)):
            return previews
        known = _known(client, name)
        with model.folder(out) as folder:
            for number in numbers:
                try:
                    rows.append(_import_version(client, folder, number, known, options, data_dir, out, dry_run=dry_run))
                except NotRunningError:
                    raise
                except ControlPlaneError as error:
                    rows.append(Row(name, number, "refused", message=error.message))
    except NotRunningError:
        raise
    except ControlPlaneError as error:
        return [Row(name, number, "refused", message=error.message) for number in numbers or (None,)]
    return rows


def _previews(model: ModelSource) -> list[Row]:
    """Return the rows of a dry run for a model whose files are elsewhere; empty if they are on this machine."""
    rows = []
    for number in model.numbers:
        try:
            seen = model.preview(number)
            if seen is None:
                return []
            rows.append(_would_import(model.name, number, read_model_directory(*seen)))
        except ControlPlaneError as error:
            rows.append(Row(model.name, number, "refused", message=error.message))
    return rows


def _would_import(name: str, number: int, found: ModelDirectory) -> Row:
    needs = f"contains code, so the key needs the scope code: {found.code}" if found.code else ""
    return Row(name, number, "would import", message="; ".join(filter(None, (needs, *found.notes))))


def _import_version(
    client: Client,
    folder: Path,
    number: int,
    known: Mapping[Content, int],
    options: PublishOptions,
    data_dir: Path,
    out: Output,
    *,
    dry_run: bool,
) -> Row:
    with Bar(out) as bar:
        files = fingerprint(folder, bar, version_folder=number)
    content = frozenset((stored_path(file.entry.path, number), file.entry.sha256) for file in files)
    if (present := known.get(content)) is not None:
        return Row(folder.name, number, "unchanged", present)
    # Checked here as well, so that nothing is uploaded that the server would refuse, and a dry run says the same.
    found = read_model_directory((folder / CONFIG_FILE).read_bytes(), {path for path, _ in content})
    if dry_run:
        return _would_import(folder.name, number, found)
    result, why = _publish(client, folder, number, known, options, data_dir, out)
    notes = (f"needs something: {result['missing']}" if result.get("missing") else "", why, *result.get("warnings", ()))
    state = "unchanged" if result.get("unchanged") else "imported"
    return Row(folder.name, number, state, int(result["version"]), "; ".join(filter(None, notes)))


def _publish(
    client: Client,
    folder: Path,
    number: int,
    known: Mapping[Content, int],
    options: PublishOptions,
    data_dir: Path,
    out: Output,
) -> tuple[dict[str, Any], str]:
    """Publish a version under its folder's number, or under the next one with the reason for that."""
    options = replace(options, version_folder=number)
    if number > VERSION_MAX:
        why = f"{number} is above the limit of {VERSION_MAX}"
    elif number in known.values():
        why = f"{folder.name}:{number} exists with other content"
    else:
        try:
            return publish(client, folder.name, folder, replace(options, number=number), data_dir, out), ""
        except (ClientError, OperationFailedError) as error:
            if error.code not in _REFUSED_NUMBER:
                raise
            why = error.message.partition(";")[0]
    result = publish(client, folder.name, folder, options, data_dir, out)
    return result, f"published under another number: {why}"


def _known(client: Client, model: str) -> dict[Content, int]:
    """Return the versions of a model by their files; empty if the model does not exist."""
    try:
        versions = [client.read(Version, item) for item in client.items(f"/v1/models/{segment(model)}/versions")]
    except NotFoundError:
        return {}
    except ClientError as error:
        if error.code == "not-found":
            return {}
        raise
    details = [
        fetch_version(client, Reference(model, version=one.number)) for one in versions if one.format == "triton"
    ]
    return {
        frozenset((file.path, file.sha256) for file in detail.manifest.files): detail.entry.number
        for detail in reversed(details)
    }


def as_json(rows: list[Row]) -> list[dict[str, Any]]:
    """Return the rows as JSON."""
    return [asdict(row) for row in rows]
