"""The sources of an import: a folder, a bucket, and the models that a running Triton has loaded."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import httpx

from controlplane.cli.output import Output
from controlplane.cli.progress import Bar
from controlplane.domain.model_directory import CONFIG_FILE, stored_path, version_folders
from controlplane.domain.names import validate_file_path
from controlplane.errors import InvalidArtifactError, InvalidInputError, StoreError, TritonError, TritonUnavailableError
from controlplane.settings import StoreSettings
from controlplane.storage.base import ObjectStore
from controlplane.storage.factory import open_store

_INDEX_SECONDS = 30.0
_SKIPPED = frozenset({"__pycache__"})


class ModelSource(Protocol):
    """One model directory of a source."""

    @property
    def name(self) -> str:
        """Return the model's name, which is that of its folder."""
        ...

    @property
    def numbers(self) -> list[int]:
        """Return the version folders to import."""
        ...

    def check(self) -> None:
        """Raise InvalidArtifactError if it is no model directory."""
        ...

    def preview(self, number: int) -> tuple[bytes, set[str]] | None:
        """Return the configuration and the paths that a version has, without its files; None if the files are here."""
        ...

    def folder(self, out: Output, /) -> AbstractContextManager[Path]:
        """Provide the directory on this machine."""
        ...


@dataclass(frozen=True)
class LocalModel:
    """A model directory on this machine.

    Attributes:
        path: The directory.
        loaded: The versions to import; None imports all.
    """

    path: Path
    loaded: frozenset[int] | None = None

    @property
    def name(self) -> str:
        """See `ModelSource.name`."""
        return self.path.name

    @property
    def numbers(self) -> list[int]:
        """See `ModelSource.numbers`."""
        folders = self.path.iterdir() if self.path.is_dir() else ()
        found = version_folders(f"{one.name}/x" for one in folders if one.is_dir())
        return found if self.loaded is None else sorted(self.loaded)

    def check(self) -> None:
        """See `ModelSource.check`."""
        for folder in (self.path, *(self.path / str(number) for number in self.loaded or ())):
            if self.loaded is not None and not folder.is_dir():
                raise InvalidArtifactError(f"the server has loaded it, but there is no folder {folder}")
        _check(self.name, self.numbers, has_config=(self.path / CONFIG_FILE).is_file())

    def preview(self, _number: int) -> tuple[bytes, set[str]] | None:
        """See `ModelSource.preview`."""
        return None

    def folder(self, _out: Output, /) -> AbstractContextManager[Path]:
        """See `ModelSource.folder`."""
        return nullcontext(self.path)


@dataclass(frozen=True)
class BucketModel:
    """A model directory in a bucket, which is copied to a temporary folder while its versions are published.

    Attributes:
        name: The model's name.
        store: The bucket.
        sizes: Size by path in the directory.
    """

    name: str
    store: ObjectStore = field(repr=False)
    sizes: Mapping[str, int] = field(repr=False)

    @property
    def numbers(self) -> list[int]:
        """See `ModelSource.numbers`."""
        return version_folders(self.sizes)

    def check(self) -> None:
        """See `ModelSource.check`."""
        _check(self.name, self.numbers, has_config=CONFIG_FILE in self.sizes)

    def preview(self, number: int) -> tuple[bytes, set[str]] | None:
        """See `ModelSource.preview`."""
        paths = {path for path in self.sizes if version_folders([path]) in ([], [number])}
        return self.store.get(f"{self.name}/{CONFIG_FILE}"), {stored_path(path, number) for path in paths}

    @contextmanager
    def folder(self, out: Output, /) -> Iterator[Path]:
        """See `ModelSource.folder`."""
        with tempfile.TemporaryDirectory(prefix="tritonctl-import-") as folder:
            target = Path(folder) / self.name
            with Bar(out) as bar:
                bar.stage(f"downloading {self.name}", total=sum(self.sizes.values()))
                for path, size in self.sizes.items():
                    try:
                        self._download(path, size, target / validate_file_path(path))
                    except OSError as error:
                        raise StoreError(
                            f"{self.name}/{path} cannot be written to the temporary folder {folder}: {error.strerror}; "
                            "set TMPDIR to a folder with more space",
                            path=folder,
                        ) from error
                    bar.advance(size)
            yield target

    def _download(self, path: str, size: int, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.store.open(f"{self.name}/{path}") as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        if target.stat().st_size != size:
            raise InvalidArtifactError(f"{self.name}/{path} changed while it was downloaded; import it again")


@contextmanager
def bucket_models(settings: StoreSettings, data_dir: Path) -> Iterator[list[BucketModel]]:
    """Provide the model directories in a bucket, by name.

    Args:
        settings: The URL of the repository (``s3://bucket/prefix``) and the settings of the connection.
        data_dir: The folder of local state.

    Raises:
        StoreError: The bucket cannot be read.
    """
    store = open_store(settings, data_dir)
    try:
        yield [found for name in store.list_folders("") if (found := _bucket_model(store, name)) is not None]
    finally:
        store.close()


def _bucket_model(store: ObjectStore, name: str) -> BucketModel | None:
    sizes = {}
    for item in store.list(f"{name}/") if name and not name.startswith(".") else ():
        path = item.key.removeprefix(f"{name}/")
        parts = path.split("/")
        hidden = any(part.startswith(".") or part in _SKIPPED for part in parts)
        if parts[-1] and not hidden:  # consoles write an empty object for each folder
            sizes[path] = item.size_bytes
    found = BucketModel(name, store, sizes)
    return found if CONFIG_FILE in sizes or found.numbers else None


def _check(name: str, numbers: list[int], *, has_config: bool) -> None:
    if not has_config:
        raise InvalidArtifactError(f"it has no {CONFIG_FILE}; publish its model file with `tritonctl push {name} FILE`")
    if not numbers:
        raise InvalidArtifactError("it has no version folder")


def local_models(source: Path) -> list[LocalModel]:
    """Return the model directories of a repository on this machine, by name.

    Raises:
        InvalidInputError: The source is not a folder.
    """
    if not source.is_dir():
        raise InvalidInputError(f"{source} is not a folder")
    folders = sorted(one for one in source.iterdir() if one.is_dir() and not one.name.startswith("."))
    found = [LocalModel(folder) for folder in folders]
    return [model for model in found if (model.path / CONFIG_FILE).is_file() or model.numbers]


def loaded_models(url: str, source: Path) -> list[LocalModel]:
    """Return the models that a running Triton has loaded, with their directories in its model repository.

    Args:
        url: ``triton://HOST:PORT``, the address of its HTTP service.
        source: Its model repository on this machine.

    Raises:
        InvalidInputError: The source is not a folder, or the URL is not valid.
        TritonUnavailableError: No server answers.
        TritonError: It refused.
    """
    if not source.is_dir():
        raise InvalidInputError(f"{source} is not a folder")
    versions: dict[str, set[int]] = {}
    for name, number in _ready(url):
        versions.setdefault(name, set()).add(number)
    return [LocalModel(source / name, frozenset(numbers)) for name, numbers in sorted(versions.items())]


def _ready(url: str) -> Iterator[tuple[str, int]]:
    parts = urlsplit(url)
    if not parts.hostname or parts.username or parts.path.strip("/") or parts.query:
        raise InvalidInputError(f"{url!r} is not the address of a Triton; use triton://HOST:PORT")
    address = f"http://{parts.netloc}"
    try:
        answer = httpx.post(
            f"{address}/v2/repository/index", json={"ready": True}, timeout=_INDEX_SECONDS, trust_env=False
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise TritonUnavailableError(
            f"no Triton answers over HTTP at {address} ({error or type(error).__name__}); give the port of its HTTP "
            "service, which is usually 8000"
        ) from error
    try:
        if answer.status_code != httpx.codes.OK:
            raise TritonError(
                f"the server at {address} answered {answer.status_code} when it was asked for its models; if it "
                "restricts model control, import the folder alone: tritonctl import DIR"
            )
        for item in answer.json():
            if item.get("state") == "READY":
                yield str(item["name"]), int(item["version"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TritonError(f"the server at {address} is not a Triton: it sent no list of models") from error
