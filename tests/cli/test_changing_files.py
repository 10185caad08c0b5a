"""A push reports the file that changed between the digest and the end of the upload."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controlplane.cli.output import Output
from controlplane.cli.progress import Bar
from controlplane.cli.workflows.upload import Journal, fingerprint, upload
from controlplane.client.http import Client
from controlplane.errors import InvalidArtifactError
from tests.support.api import Api, serving, settings_for

SIZE = 3 << 20


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(settings_for(tmp_path_factory.mktemp("bare"), embedded=False)) as running:
        yield running


def _shorter(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: SIZE // 2])


def _other(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])


def _gone(path: Path) -> None:
    path.unlink()


def _longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def push(api: Api, path: Path, journal: Path, change: Callable[[Path], None]) -> str:
    out = Output()
    with Client(api.url) as client, Bar(out) as bar:
        files = fingerprint(path, bar)
        change(path)
        sent = upload(client, files, bar, Journal(journal, api.url, files))
        return sent.files[0].state


@pytest.mark.parametrize("change", [_shorter, _other, _gone])
def test_file_that_changes_during_a_push_is_named(bare: Api, tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(change.__name__.encode() + b"0123456789abcdef" * (SIZE // 16))
    with pytest.raises(InvalidArtifactError, match=r"model\.bin changed during the push; push it again"):
        push(bare, path, tmp_path / "journal", change)


def test_file_that_grows_is_sent_with_its_original_content(bare: Api, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"growing" * (SIZE // 7))
    assert push(bare, path, tmp_path / "journal", _longer) == "present"
