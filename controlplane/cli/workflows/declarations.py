"""Documents for `apply` and `diff`: read from files, sent to the control plane, and made from what exists (`get`)."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from controlplane.cli.output import Output
from controlplane.client.http import Client, segment
from controlplane.client.models import Operation
from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.documents import API_VERSION, Document
from controlplane.domain.validation import invalid_field
from controlplane.errors import InvalidInputError

_SUFFIXES = (".yaml", ".yml", ".json")
_STDIN = "-"
_DOCUMENT: TypeAdapter[Document] = TypeAdapter(Document)


def read_documents(sources: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the documents in files and folders; ``-`` reads standard input.

    Raises:
        InvalidInputError: A file cannot be read, is not YAML or JSON, or has a document that is not valid.
    """
    found: list[dict[str, Any]] = []
    for source in sources:
        for name, text in _texts(source):
            found += _parse(name, text)
    if not found:
        raise InvalidInputError(f"no document in {', '.join(map(str, sources))}")
    return found


def _texts(source: Path) -> Iterator[tuple[str, str]]:
    if str(source) == _STDIN:
        yield "standard input", sys.stdin.read()
        return
    files = [source]
    if source.is_dir():
        files = sorted(one for one in source.rglob("*") if one.suffix in _SUFFIXES and one.is_file())
        if not files:
            raise InvalidInputError(f"{source} contains no file that ends in {', '.join(_SUFFIXES)}")
    for file in files:
        try:
            yield str(file), file.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"{file} is not UTF-8 text") from error
        except OSError as error:
            raise InvalidInputError(f"failed to read {file}: {(error.strerror or '').lower()}") from error


def _parse(name: str, text: str) -> Iterator[dict[str, Any]]:
    try:
        parsed = [one for one in yaml.safe_load_all(text) if one is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InvalidInputError(f"{name}{where} is not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidInputError(f"{name} is not valid YAML") from error
    for number, item in enumerate(parsed, 1):
        # A file may also have a list of documents, as `get -o json` prints them.
        for one in item if isinstance(item, list) else [item]:
            yield _checked(name, number, one)


def _checked(name: str, number: int, item: Any) -> dict[str, Any]:
    """Return a document whose form is valid, so that an error names its file."""
    where = f"{name}, document {number}"
    if not isinstance(item, dict):
        raise InvalidInputError(f"{where} must be an object with apiVersion, kind, metadata and spec")
    if item.get("kind") == "Webhook":
        raise InvalidInputError(
            f"{where}: a webhook is not a document but a setting, CONTROLPLANE_MONITORING__WEBHOOK_URL"
        )
    try:
        document = _DOCUMENT.validate_python(item)
    except ValidationError as error:
        raise InvalidInputError(f"{where}: {invalid_field(error)}") from error
    return document.model_dump(mode="json", by_alias=True, exclude_unset=True)


def send(client: Client, body: dict[str, Any], *, dry_run: bool) -> dict[str, Any]:
    """Apply or compare documents, and return the differences."""
    result: dict[str, Any] = client.post("/v1/apply", body, dry_run=dry_run, read_seconds=600)
    return result


def show(out: Output, result: dict[str, Any], *, all_rows: bool = False) -> None:
    """Print the differences: one line for each object, followed by its fields."""
    rows = []
    for item in result["items"]:
        if item["action"] == "unchanged" and not all_rows:
            continue
        rows.append((item["kind"], item["name"], item["action"], item["note"]))
        rows += [
            ("", f"  {change['field']}", f"{_value(change['before'])} -> {_value(change['after'])}", "")
            for change in item["changes"]
        ]
    out.table(("kind", "name", "change", "note"), rows, empty="nothing differs")


def new_keys(result: dict[str, Any]) -> list[str]:
    """Return the names of the API keys that would be created."""
    return [item["name"] for item in result["items"] if (item["kind"], item["action"]) == ("ApiKey", "create")]


def secrets_of(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the names and the secrets of the API keys that were created."""
    for item in result["items"]:
        if item.get("secret"):
            yield item["name"], item["secret"]


def operations(client: Client, result: dict[str, Any]) -> Iterator[Operation]:
    """Yield the operations that the changes of deployments started."""
    for item in result["items"]:
        if item.get("operation_id"):
            yield client.fetch(Operation, f"/v1/operations/{item['operation_id']}")


def existing(client: Client, kind: str | None, name: str | None) -> list[dict[str, Any]]:
    """Return what exists as documents, in the order in which `apply` takes them.

    Args:
        client: The control plane.
        kind: Only documents of this kind; None for all but API keys.
        name: Only the object with this name.
    """
    found: list[dict[str, Any]] = []
    if kind in {None, "Model", "Alias"}:
        model = name.partition("@")[0] if name else None
        heads = client.items("/v1/models") if model is None else [client.get(f"/v1/models/{segment(model)}")]
        kept = list(heads)
        if kind != "Alias":
            found += [_model(head) for head in kept]
        if kind != "Model":
            found += [
                _document("Alias", f"{head['name']}@{alias}", {"version": version})
                for head in kept
                for alias, version in sorted(head["aliases"].items())
                if name is None or name == f"{head['name']}@{alias}"
            ]
    if kind == "ApiKey":
        found += [
            _key(key)
            for key in client.get("/v1/keys")["items"]
            if key["state"] == "active" and name in {None, key["name"]}
        ]
    if kind in {None, "Deployment"}:
        deployed = client.items("/v1/deployments") if name is None else [client.get(f"/v1/deployments/{segment(name)}")]
        found += map(_deployment, deployed)
    return found


def as_yaml(documents: Iterable[dict[str, Any]]) -> str:
    """Return documents as YAML."""
    return yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, explicit_start=True)


def _document(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _model(head: dict[str, Any]) -> dict[str, Any]:
    return _document("Model", head["name"], {"description": head["description"], "labels": head["labels"]})


def _key(key: dict[str, Any]) -> dict[str, Any]:
    spec = {"scopes": key["scopes"], "models": key["models"]}
    optional = ("expires_at", "rate_per_second", "burst")
    return _document("ApiKey", key["name"], spec | {name: key[name] for name in optional if key[name] is not None})


def _deployment(deployment: dict[str, Any]) -> dict[str, Any]:
    """Return a deployment as a document: what was asked for, also while a rollout decides about it."""
    spec = deployment["spec"]
    rollout = spec.get("rollout")
    wanted = rollout if rollout and rollout["phase"] in {"running", "paused"} and spec["loaded"] else spec
    given = DeploymentSettings.model_validate(wanted["settings"]).model_dump(mode="json", exclude_defaults=True)
    body = {"reference": wanted["reference"], "settings": given} | ({} if spec["loaded"] else {"loaded": False})
    return _document("Deployment", deployment["model"], body)


def _value(value: Any) -> str:
    return "-" if value is None or value == "" else str(value)
