"""Finding a source by its scheme, also one that a third party installed, and cleaning up after downloads."""

import os
import sys
from pathlib import Path

import pytest

from controlplane.errors import InvalidInputError
from controlplane.sources.errors import SourceError
from controlplane.sources.registry import fetched, find_source, is_uri

MODULE = '''
from controlplane.domain.manifest import Origin
from controlplane.sources.base import ModelSource, SourceArtifact


class Shelf(ModelSource):
    """A place of its own."""

    scheme = "shelf"
    example = "shelf://a"

    def fetch(self, uri, folder, environment, progress):
        progress("taking it")
        (folder / "model.onnx").write_bytes(b"model")
        return SourceArtifact(folder / "model.onnx", "a", Origin(uri=uri, revision="7"))
'''


def install(folder: Path, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a distribution that names a source, as pip would."""
    (folder / "shelf_source.py").write_text(MODULE)
    about = folder / "shelf_source-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: shelf-source\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[triton_control_plane.sources]\nshelf = {value}\n")
    monkeypatch.syspath_prepend(folder)


def test_installed_source_is_used_and_its_files_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (site := tmp_path / "site").mkdir()
    install(site, "shelf_source:Shelf", monkeypatch)
    said: list[str] = []
    with fetched("shelf://a", tmp_path / "work", said.append) as artifact:
        assert artifact.path.read_bytes() == b"model"
        assert artifact.path.is_relative_to(tmp_path / "work")
    assert not artifact.path.exists()
    assert (said, artifact.origin.revision) == (["taking it"], "7")
    with pytest.raises(InvalidInputError, match=r"known schemes: .*mlflow, shelf"):
        find_source("ftp://a")
    sys.modules.pop("shelf_source")


@pytest.mark.parametrize(
    ("value", "message"),
    [("no_such_module:Shelf", "failed to load the installed source 'shelf'"), ("os:path", "not a subclass")],
)
def test_broken_installed_source_is_reported(
    value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, value, monkeypatch)
    with pytest.raises(SourceError, match=message):
        find_source("shelf://a")


def test_leftovers_of_killed_commands_are_removed_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (site := tmp_path / "site").mkdir()
    install(site, "shelf_source:Shelf", monkeypatch)
    old, young = tmp_path / "work" / "mlflow-old", tmp_path / "work" / "mlflow-young"
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"x")
    os.utime(old, (1, 1))
    with fetched("shelf://a", tmp_path / "work", lambda _: None):
        assert young.exists()
        assert not old.exists()
    sys.modules.pop("shelf_source")


def test_only_uris_are_uris() -> None:
    assert is_uri("mlflow://models:/vad@champion")
    assert not any(map(is_uri, ("vad:7", "vad@champion", "./a.onnx", "C:\\a.onnx", "models:/vad/3")))
