"""What is in the wheel and in the sdist. `make dist` also installs them and runs the demo from the wheel."""

import os
import shutil
import subprocess
import tomllib

import pytest

from tests.wheel.packages import PACKAGES, ROOT, Built, build, expected, tracked


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_wheel_has_the_packages_with_their_data_and_nothing_else(built, project):
    info = f"{built.wheel.name.split('-')[0]}-{project['version']}.dist-info/"
    names = built.wheel_names()
    data = info.replace(".dist-info/", ".data/data/")
    shared = {name.removeprefix(data) for name in names if name.startswith(data)}
    assert {"share/man/man1/tritonctl.1", "share/bash-completion/completions/tritonctl"} <= shared
    assert shared == set(tracked("share"))
    inside = {name for name in names if not name.startswith((info, data))}
    assert inside == expected()
    assert {f"{package}/__init__.py" for package in PACKAGES} | {"controlplane/py.typed"} <= inside
    assert {name.removeprefix(info) for name in names if name.startswith(info)} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }


def test_wheel_metadata_is_that_of_the_project(built, project):
    metadata = built.metadata()
    assert (metadata["Name"], metadata["Version"]) == (project["name"], project["version"])
    assert metadata["License-Expression"] == project["license"]
    extras = set(metadata.get_all("Provides-Extra") or ())
    assert extras == set(project["optional-dependencies"])
    base = [one for one in metadata.get_all("Requires-Dist") or () if "extra ==" not in one]
    assert len(base) == len(project["dependencies"])
    assert not any(one.startswith(("torch", "nvidia-pytriton", "onnxruntime")) for one in base)
    assert "tritonctl = controlplane.cli.main:main" in built.entry_points()


def test_sdist_has_what_a_build_and_the_tests_need(built):
    names = built.sdist_names()
    assert expected() <= names
    assert {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "Makefile", "tests/conftest.py"} <= names
    assert not [name for name in names if name.startswith((".ci/", ".venv/", "dist/")) or name.endswith(".pyc")]


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
def test_manual_page_is_read_without_warnings():
    page = ROOT / "share" / "man" / "man1" / "tritonctl.1"
    run = ["man", "--warnings", "-E", "UTF-8", "-l", str(page)]
    done = subprocess.run(run, capture_output=True, text=True, check=True, env={**os.environ, "MANWIDTH": "80"})
    assert done.stderr == ""
    assert "tritonctl deploy REF" in done.stdout
    assert "tritonctl deploy resnet:7 --wait" in done.stdout
