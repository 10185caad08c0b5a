"""Registry of model sources by the scheme of their URIs: built-in ones, and those that third parties install.

A third party names its `ModelSource` subclass in an entry point::

    [project.entry-points."triton_control_plane.sources"]
    my-source = "my_package.module:MySource"

It replaces a built-in source of the same scheme.
"""

import importlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from controlplane.errors import InvalidInputError
from controlplane.sources.base import ModelSource, Progress, SourceArtifact
from controlplane.sources.errors import SourceError

GROUP = "triton_control_plane.sources"

BUILT_IN = {
    "hf": "controlplane.sources.huggingface:HuggingFaceSource",
    "mlflow": "controlplane.sources.mlflow:MlflowSource",
}
"""Modules and classes by scheme; a module is imported when its scheme is used."""

_URI = re.compile(r"([a-z][a-z0-9+.-]*)://.*", re.DOTALL)
_LEFTOVER_SECONDS = 24 * 3600.0


def is_uri(text: str) -> bool:
    """Return whether a text on the command line is a URI rather than a path or a reference."""
    return _URI.fullmatch(text) is not None


def find_source(uri: str) -> ModelSource:
    """Return the source that serves a URI.

    Raises:
        InvalidInputError: No source has this scheme; the message lists those that exist.
        SourceError: An installed source cannot be loaded.
    """
    match = _URI.fullmatch(uri)
    scheme = match.group(1) if match else ""
    installed = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    for entry in installed.values():
        kind = _installed(entry)
        if kind.scheme == scheme:
            return kind()
    if scheme in BUILT_IN:
        return _built_in(scheme)
    known = sorted({*BUILT_IN, *(_installed(entry).scheme for entry in installed.values())})
    raise InvalidInputError(
        f"no source of models has the scheme {scheme!r} of {uri!r}; known schemes: {', '.join(known)}. Download the "
        "model and give the file or folder instead",
        uri=uri,
    )


@contextmanager
def fetched(uri: str, work_dir: Path, progress: Progress) -> Iterator[SourceArtifact]:
    """Download the model of a URI into a temporary folder, which is removed at the end of the block.

    Args:
        uri: The URI.
        work_dir: Parent of the folder, on a disk with room for models. Folders that killed commands left there are
            removed after a day.
        progress: Reports the progress.

    Raises:
        ControlPlaneError: See `ModelSource.fetch`.
    """
    source = find_source(uri)
    work_dir.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(work_dir)
    with tempfile.TemporaryDirectory(dir=work_dir, prefix=f"{source.scheme}-", ignore_cleanup_errors=True) as folder:
        yield source.fetch(uri, Path(folder), os.environ, progress)


def recognize(path: Path) -> SourceArtifact | None:
    """Return what a folder that was downloaded from a built-in source contains; None if it is not one.

    Raises:
        InvalidArtifactError: It is one, but the model has no form that can be published.
    """
    found = (_built_in(scheme).recognize(path) for scheme in BUILT_IN)
    return next((artifact for artifact in found if artifact is not None), None)


def _built_in(scheme: str) -> ModelSource:
    module, _, name = BUILT_IN[scheme].partition(":")
    source = getattr(importlib.import_module(module), name)()
    assert isinstance(source, ModelSource)
    return source


def _installed(entry: metadata.EntryPoint) -> type[ModelSource]:
    try:
        kind = entry.load()
    except (ImportError, AttributeError) as error:
        raise SourceError(f"failed to load the installed source {entry.name!r}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, ModelSource)):
        raise SourceError(
            f"the installed source {entry.name!r} is not a subclass of controlplane.sources.base.ModelSource"
        )
    return kind


def _remove_leftovers(work_dir: Path) -> None:
    for folder in work_dir.iterdir():
        try:
            old = time.time() - folder.stat().st_mtime > _LEFTOVER_SECONDS
        except OSError:  # another command has removed it
            continue
        if old and folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)
