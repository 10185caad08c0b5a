"""Records of hashed files: what is trusted, what is hashed again, what survives a process."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from controlplane import checkedfiles
from controlplane.checkedfiles import CheckedFiles

SHA = hashlib.sha256(b"content").hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "records"
    path.mkdir()
    return path


def _in_place(path: Path) -> None:
    before = path.stat()
    with path.open("r+b") as writer:
        writer.write(b"C")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replaced(path: Path) -> None:
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"CONTENT")
    other.replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _linked(path: Path) -> None:
    path.with_name("second").hardlink_to(path)


@pytest.mark.parametrize("change", [_in_place, _replaced, _linked])
def test_file_is_hashed_once_and_again_after_any_change(
    folder: Path, file: Path, change: Callable[[Path], None]
) -> None:
    checked = CheckedFiles(folder)
    assert [checked.digest(file), checked.digest(file)] == [SHA, SHA]
    assert checked.hashed_bytes == 7
    assert CheckedFiles(folder).known(file.stat()) == SHA  # another process
    change(file)
    assert CheckedFiles(folder).known(file.stat()) is None
    assert checked.digest(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert checked.hashed_bytes == 14


def test_records_of_another_running_process_are_found(folder: Path, file: Path) -> None:
    mine, other = CheckedFiles(folder), CheckedFiles(folder)
    other.digest(file)
    assert mine.digest(file) == SHA
    assert mine.hashed_bytes == 0


def test_own_changes_of_links_keep_the_record_and_a_write_meanwhile_does_not(folder: Path, file: Path) -> None:
    checked = CheckedFiles(folder)
    checked.digest(file)
    with checked.unchanged(file):
        file.with_name("second").hardlink_to(file)
    assert checked.known(file.stat()) == SHA
    checked.unlink(file.with_name("second"))
    assert checked.known(file.stat()) == SHA
    with checked.unchanged(file):
        file.write_bytes(b"CONTENT")
    assert checked.known(file.stat()) is None


def test_records_end_with_the_boot(folder: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CheckedFiles(folder).digest(file)
    boot = tmp_path / "boot_id"
    boot.write_text("another-boot\n")
    monkeypatch.setattr(checkedfiles, "_BOOT_ID", boot)
    assert CheckedFiles(folder).known(file.stat()) is None
    assert list(folder.iterdir()) == []  # those of the earlier boot were removed
    monkeypatch.setattr(checkedfiles, "_BOOT_ID", tmp_path / "nothing")
    CheckedFiles(folder).digest(file)
    assert list(folder.iterdir()) == []


def test_damaged_and_incomplete_lines_are_ignored(folder: Path, file: Path) -> None:
    CheckedFiles(folder).digest(file)
    (log,) = folder.iterdir()
    log.write_bytes(b'garbage\n[1]\n{"dev":1}\n' + log.read_bytes() + b'{"dev":1,"ino":2,"si')
    checked = CheckedFiles(folder)
    assert checked.known(file.stat()) == SHA


def test_records_stay_bounded(folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkedfiles, "_SPARE_LINES", 10)
    checked = CheckedFiles(folder)
    checked.digest(file)
    for _ in range(50):
        with checked.unchanged(file) as fd:
            checkedfiles.mark_used(fd)
    (log,) = folder.iterdir()
    assert len(log.read_bytes().splitlines()) < 20
    assert CheckedFiles(folder).known(file.stat()) == SHA


def test_folder_that_cannot_be_written_costs_a_hash_and_nothing_else(
    folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = CheckedFiles(folder / "gone")
    assert checked.digest(file) == SHA
    assert checked.known(file.stat()) == SHA


_KILLED = """
import os, signal, sys
from pathlib import Path
from controlplane import checkedfiles
checkedfiles._SPARE_LINES = 5
checked = checkedfiles.CheckedFiles(Path(sys.argv[1]))
file = Path(sys.argv[2])
checked.digest(file)
print("ready", flush=True)
while True:
    with checked.unchanged(file) as fd:
        checkedfiles.mark_used(fd)
"""


def test_process_killed_while_it_writes_leaves_readable_records(folder: Path, file: Path) -> None:
    program = [sys.executable, "-c", _KILLED, str(folder), str(file)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
    checked = CheckedFiles(folder)
    assert checked.digest(file) == SHA
    checked.remember(file.stat(), SHA)
    assert CheckedFiles(folder).known(file.stat()) == SHA


def test_symbolic_link_is_not_followed(folder: Path, file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    with pytest.raises(OSError, match="symbolic links"):
        CheckedFiles(folder).digest(link)
