"""Tests of the second run of failed tests: what fails alone still fails the run."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

TESTS = """
from pathlib import Path

import pytest


def test_unstable():
    seen = Path("seen")
    again = seen.exists()
    seen.touch()
    assert again


def test_passing():
    Path("passed").open("a").write("x")


@pytest.mark.skipif(not Path("broken").exists(), reason="nothing is broken")
@pytest.mark.parametrize("number", range(int(Path("broken").read_text()) if Path("broken").exists() else 1))
def test_broken(number):
    assert False
"""


def ran(folder: Path, broken: int) -> tuple[int, str]:
    """Run the tests of a new checkout, then those that failed again; return the exit code and the output."""
    (folder / "test_some.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\n")
    if broken:
        (folder / "broken").write_text(str(broken))
    first = subprocess.run([sys.executable, "-m", "pytest", "-q"], cwd=folder, check=False, capture_output=True)
    assert first.returncode == 1, first.stdout
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.again import *; sys.exit(main(Path.cwd()))"
    second = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return second.returncode, second.stdout.decode()


def test_test_that_passes_alone_is_named_and_others_are_not_run(tmp_path: Path) -> None:
    code, output = ran(tmp_path, 0)
    assert code == 0, output
    assert "Correct them:\n  test_some.py::test_unstable" in output
    assert (tmp_path / "passed").read_text() == "x"


@pytest.mark.parametrize("broken", [1, 5])
def test_run_fails_if_a_test_fails_alone_or_too_many_failed(tmp_path: Path, broken: int) -> None:
    code, output = ran(tmp_path, broken)
    assert code == 1, output
    assert ("6 tests failed" in output) is (broken == 5)
