"""Which published vulnerabilities a Triton version has."""

import re
from pathlib import Path

import pytest

from controlplane.domain.advisories import ADVISORIES, advisories_for, release_of, warnings_for


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("2.24.0", "22.07"),
        ("2.46.0", "24.05"),
        ("2.51.0", "24.10"),
        ("2.53.0", "24.12"),
        ("2.54.0", "25.01"),
        ("2.59.0", "25.06"),
        ("2.59.1", "25.07"),
        ("2.60.0", "25.08"),
        ("2.67.0", "26.03"),
        ("2.73.0", "26.09"),
        ("2.51.0+something", "24.10"),
        ("1.12.0", ""),
        ("3.0.0", ""),
        ("", ""),
    ],
)
def test_a_version_has_its_container_release(version: str, release: str) -> None:
    assert release_of(version) == release


def test_a_release_lacks_the_fixes_of_later_ones_only() -> None:
    assert len(advisories_for("2.51.0")) == len(ADVISORIES)
    assert {"CVE-2025-23319", "CVE-2026-24207"} <= {one for found in advisories_for("2.51.0") for one in found.ids}
    assert "25.07" not in {one.fixed_in for one in advisories_for("2.59.1")}
    assert next(one.fixed_in for one in advisories_for("2.66.0")) == "26.03"
    assert "26.03" not in {one.fixed_in for one in advisories_for("2.67.0")}
    assert advisories_for("2.73.0") == ()
    assert advisories_for("unknown") == ()


def test_the_warning_says_what_to_do() -> None:
    assert warnings_for("2.60.0", embedded=False)[-1] == "update it to 26.07 or newer"
    assert "listens on loopback only" in warnings_for("2.51.0", embedded=True)[-1]
    assert warnings_for("2.73.0", embedded=True) == ()


def test_the_release_that_the_compose_file_names_has_every_fix() -> None:
    text = (Path(__file__).parents[2] / "docker-compose.yml").read_text()
    match = re.search(r"nvcr\.io/nvidia/tritonserver:(\d+)\.(\d+)-py3", text)
    assert match is not None
    named = (int(match[1]), int(match[2]))
    assert all(tuple(map(int, one.fixed_in.split("."))) <= named for one in ADVISORIES)
