"""Models from MLflow: ``mlflow://models:/NAME@ALIAS``, ``mlflow://models:/NAME/3`` and ``mlflow://runs:/RUN/PATH``."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from controlplane.domain.manifest import Origin
from controlplane.domain.names import validate_file_path
from controlplane.errors import InvalidInputError, NotFoundError
from controlplane.sources.base import ModelSource, Progress, SourceArtifact
from controlplane.sources.mlflow_api import MlflowApi, MlflowConnection
from controlplane.sources.mlflow_model import DOCUMENT, MlflowModel, read_folder, read_model

_KEPT_TAGS = frozenset({"mlflow.runName", "mlflow.user", "mlflow.source.name", "mlflow.source.git.commit"})
_TAGS_MAX = 64
_TAG_KEY_MAX, _TAG_VALUE_MAX = 250, 1024
_FORMS = (
    "use mlflow://models:/NAME/3, mlflow://models:/NAME@ALIAS, mlflow://models:/NAME/latest or mlflow://runs:/RUN/PATH"
)


@dataclass(frozen=True, slots=True)
class _Files:
    """Where a model's files are: how to list them, and how to fetch one to a path."""

    listing: Callable[[], list[str]]
    fetch: Callable[[str, Path], None]


@dataclass(frozen=True, slots=True)
class _Found:
    """A model that was found: its name, origin and the URI of its files."""

    name: str
    origin: Origin
    artifacts: str


class MlflowSource(ModelSource):
    """An MLflow tracking server and model registry, by the REST API."""

    scheme = "mlflow"
    example = "mlflow://models:/vad@champion"

    def fetch(self, uri: str, folder: Path, environment: Mapping[str, str], progress: Progress) -> SourceArtifact:
        """See `controlplane.sources.base.ModelSource.fetch`."""
        inner = uri.removeprefix("mlflow://")
        kind, separator, rest = inner.partition(":/")
        rest = rest.lstrip("/")
        if not separator or kind not in {"models", "runs"} or not rest:
            raise InvalidInputError(f"{uri!r} is not a valid MLflow URI; {_FORMS}", uri=uri)
        registry = kind == "models" and not re.fullmatch(r"m-[0-9a-f]+", rest)
        with MlflowApi(MlflowConnection.read(environment, registry=registry)) as api:
            progress(f"asking MLflow at {api.url}")
            found = (
                _registered(api, rest) if registry else _logged(api, rest) if kind == "models" else _of_run(api, rest)
            )
            files = _locate(api, found.artifacts, environment)
            try:
                files.fetch(DOCUMENT, folder / DOCUMENT)
            except NotFoundError as error:
                raise NotFoundError(
                    f"MLflow at {api.url} has no model at {found.origin.uri}: the folder has no {DOCUMENT}"
                ) from error
            model = read_model(read_folder(folder) or b"", found.origin.uri)
            wanted = model.files(files.listing())
            for number, path in enumerate(wanted, 1):
                progress(f"downloading {path} ({number} of {len(wanted)})")
                files.fetch(path, folder / "files" / validate_file_path(path))
        origin = found.origin
        if kind == "models" and origin.run is None:
            origin = origin.model_copy(update={"run": model.run_id})
        return _artifact(folder / "files", wanted, model, found.name, origin)

    def recognize(self, path: Path) -> SourceArtifact | None:
        """See `controlplane.sources.base.ModelSource.recognize`."""
        content = read_folder(path)
        if content is None:
            return None
        model = read_model(content, str(path))
        listing = [one.relative_to(path).as_posix() for one in path.rglob("*") if one.is_file()]
        wanted = model.files(listing)
        uri = f"mlflow://models:/{model.model_id}" if model.model_id else f"mlflow://runs:/{model.run_id or 'unknown'}"
        return _artifact(path, wanted, model, path.name, Origin(uri=uri, run=model.run_id))


def _artifact(folder: Path, wanted: tuple[str, ...], model: MlflowModel, name: str, origin: Origin) -> SourceArtifact:
    # The other flavors declare their inputs in the model file.
    inputs = model.inputs if model.flavor == "pytorch" else None
    return SourceArtifact(folder / wanted[0] if len(wanted) == 1 else folder, name, origin, inputs)


def _registered(api: MlflowApi, text: str) -> _Found:
    """Find a version in the model registry by number, alias or ``latest``."""
    name, at, alias = text.rpartition("@")
    if at and name and alias and "/" not in alias:
        version = api.version_by_alias(unquote(name), unquote(alias))
    else:
        name, slash, number = text.rpartition("/")
        if not slash or not name or not (number.isdecimal() or number == "latest"):
            raise InvalidInputError(
                f"'models:/{text}' names no version of a model; {_FORMS}. Stages are deprecated in MLflow: use an alias"
            )
        version = api.newest_version(unquote(name)) if number == "latest" else api.version(unquote(name), number)
    name, number = str(version.get("name", "")), str(version.get("version", ""))
    run_id = version.get("run_id") or None
    tags = _tags(version.get("tags"), _run_tags(api, run_id))
    origin = Origin(uri=f"mlflow://models:/{name}/{number}", server=api.url, run=run_id, version=number, tags=tags)
    return _Found(name, origin, api.artifacts_of_version(name, number))


def _logged(api: MlflowApi, model_id: str) -> _Found:
    """Find a logged model of MLflow 3 by its identifier."""
    info = api.logged_model(model_id).get("info", {})
    run_id = info.get("source_run_id") or None
    tags = _tags(info.get("tags"), _run_tags(api, run_id))
    origin = Origin(uri=f"mlflow://models:/{model_id}", server=api.url, run=run_id, tags=tags)
    return _Found(str(info.get("name") or model_id), origin, str(info.get("artifact_uri", "")))


def _of_run(api: MlflowApi, text: str) -> _Found:
    """Find a model among the artifacts of a run, or among the models that it logged (MLflow 3)."""
    run_id, _, path = text.partition("/")
    path = path.strip("/")
    if not path:
        raise InvalidInputError(f"'runs:/{text}' names no model of the run; use mlflow://runs:/{run_id}/PATH")
    run = api.run(run_id)
    tags = _tags(run.get("data", {}).get("tags"))
    origin = Origin(uri=f"mlflow://runs:/{run_id}/{path}", server=api.url, run=run_id, tags=tags)
    name = path.rpartition("/")[2]
    if (logged := api.logged_model_of_run(run, path)) is not None:
        return _Found(name, origin, str(logged["info"].get("artifact_uri", "")))
    return _Found(name, origin, f"{str(run.get('info', {}).get('artifact_uri', '')).rstrip('/')}/{path}")


def _run_tags(api: MlflowApi, run_id: str | None) -> Any:
    if run_id is None:
        return None
    try:
        return api.run(run_id).get("data", {}).get("tags")
    except NotFoundError:  # deleted, or on a tracking server beside the registry
        return None


def _tags(*lists: Any) -> dict[str, str]:
    """Merge tags; the first list takes precedence. MLflow's own are left out, except those that name the source."""
    merged: dict[str, str] = {}
    for tags in lists:
        for tag in tags or ():
            key, value = str(tag.get("key", "")), str(tag.get("value", ""))
            if key and (not key.startswith("mlflow.") or key in _KEPT_TAGS):
                merged.setdefault(key[:_TAG_KEY_MAX], value[:_TAG_VALUE_MAX])
    return dict(list(merged.items())[:_TAGS_MAX])


def _locate(api: MlflowApi, artifacts: str, environment: Mapping[str, str]) -> _Files:
    """Return access to the files at an artifact URI."""
    parts = urlsplit(artifacts)
    path = unquote(parts.path).strip("/")
    if parts.scheme in {"mlflow-artifacts", "http", "https"}:
        server = None
        if parts.scheme != "mlflow-artifacts":
            server = f"{parts.scheme}://{parts.netloc}"
            path = path.removeprefix("api/2.0/mlflow-artifacts/artifacts/")
        elif parts.netloc:
            server = f"{urlsplit(api.url).scheme}://{parts.netloc}"
        return _Files(
            lambda: list(api.list_files(server, path)),
            lambda name, target: api.download(server, f"{path}/{name}", target),
        )
    if parts.scheme == "s3" and parts.netloc:
        from controlplane.sources.s3 import S3Folder

        bucket = S3Folder(parts.netloc, path, environment.get("MLFLOW_S3_ENDPOINT_URL"))
        return _Files(bucket.list_files, bucket.download)
    where = f"{parts.scheme}://" if parts.scheme else "a folder of its own machine"
    raise InvalidInputError(
        f"MLflow at {api.url} keeps the files of this model in {where}, which cannot be read from here; download them "
        "with `mlflow artifacts download` and push the folder, or serve them through MLflow "
        "(`mlflow server --artifacts-destination`)"
    )
