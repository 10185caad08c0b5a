"""A write to Triton's repository and damage in the store are detected and not loaded, and a push repairs them.

With a store in a folder, the store, the cache and the repository could share one file: a model's own code could damage
the registry's only copy, a restart did not notice a small change, and the same file could not be pushed again.
"""

import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.registry.blobs import blob_key
from controlplane.settings import ScrubSettings, Settings
from tests.support.api import Api, onnx_scale, serving, settings_for, sha256

pytestmark = [pytest.mark.triton, pytest.mark.slow]

MODELS = {"small": (8.0, 8.0000038), "large": (9.0, 1.0)}


def settings_of(folder: Path) -> Settings:
    scrub = ScrubSettings(
        delay_seconds=0, interval_seconds=0.5, requests_per_minute=1e6, bytes_per_second=1e12, refresh_seconds=0.5
    )
    return settings_for(folder / "data", embedded=True, scrub=scrub)


def tamper(path: Path, old: float, new: float) -> None:
    """Change a weight but keep the file's size, mode and modification time."""
    status = path.stat()
    content = path.read_bytes()
    changed = content.replace(struct.pack("<f", old), struct.pack("<f", new))
    assert changed != content
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(changed)
    path.chmod(status.st_mode & 0o7777)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def until(condition: Callable[[], Any], seconds: float = 90) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "not in time"
        time.sleep(0.1)
    return found


def events(api: Api, reason: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = Api.ok(api.http.get("/v1/events"))["items"]
    return [event for event in found if event["reason"] == reason]


def intact(api: Api, model: str) -> dict[str, Any]:
    (condition,) = Api.ok(api.http.get(f"/v1/models/{model}/versions/1"))["conditions"]
    assert condition["type"] == "Intact"
    found: dict[str, Any] = condition
    return found


def ready(api: Api, model: str) -> bool:
    return bool(Api.ok(api.http.get(f"/v1/deployments/{model}"))["status"]["phase"] == "Ready")


def tritonctl(api: Api, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "controlplane.cli.main", *map(str, arguments), "--url", api.url],
        env={**os.environ, "TRITONCTL_DATA_DIR": str(folder / "client")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("one-inode")


@pytest.fixture(scope="module")
def restarted(folder: Path) -> Iterator[Api]:
    """A control plane and its Triton after a restart, before which the staged files of both models were changed."""
    with serving(settings_of(folder)) as api:
        for model, (weight, changed) in MODELS.items():
            api.publish(model, onnx_scale(weight))
            api.deploy(f"{model}:1")
            tamper(staged_file(folder, model), weight, changed)
    with serving(settings_of(folder)) as api:
        yield api


def staged_file(folder: Path, model: str) -> Path:
    return folder / "data" / "model_repository" / model / "1" / "model.onnx"


def stored_file(folder: Path, model: str) -> Path:
    return folder / "data" / "store" / blob_key(sha256(onnx_scale(MODELS[model][0])))


@pytest.mark.parametrize("model", MODELS)
def test_file_changed_in_the_repository_is_not_loaded(restarted: Api, folder: Path, model: str) -> None:
    until(lambda: ready(restarted, model))
    weight = MODELS[model][0]
    values, version = restarted.infer(model, [1.0, 2.0])
    assert (values, version) == ([weight, 2 * weight], 1)
    assert any("model.onnx was changed" in event["message"] for event in events(restarted, "StagedFilesRepaired"))
    assert stored_file(folder, model).read_bytes() == onnx_scale(weight)
    assert not stored_file(folder, model).samefile(staged_file(folder, model))


def test_damage_in_the_store_is_repaired_from_the_cache(restarted: Api, folder: Path) -> None:
    until(lambda: ready(restarted, "small"))
    tamper(stored_file(folder, "small"), *MODELS["small"])
    until(lambda: events(restarted, "BlobRepaired"))
    assert stored_file(folder, "small").read_bytes() == onnx_scale(8.0)
    assert "model.onnx of small:1" in events(restarted, "BlobDamaged")[0]["message"]
    until(lambda: intact(restarted, "small")["status"] == "True")


def test_push_repairs_a_file_with_all_copies_damaged(restarted: Api, folder: Path) -> None:
    until(lambda: ready(restarted, "large"))
    tamper(staged_file(folder, "large"), *MODELS["large"])  # the cache's copy is the same file
    tamper(stored_file(folder, "large"), *MODELS["large"])
    condition = until(lambda: intact(restarted, "large") if intact(restarted, "large")["status"] == "False" else None)
    assert condition["reason"] == "BlobDamaged"
    assert "push the same files again" in condition["message"]
    doctor = tritonctl(restarted, folder, "doctor")
    assert "model.onnx of large:1" in doctor.stdout
    assert "model.onnx of large:1" in tritonctl(restarted, folder, "show", "large:1").stdout
    metrics = restarted.http.get("/metrics").text
    assert 'tritonctl_damaged_blobs{kind="damaged"} 1.0' in metrics
    source = folder / "large.onnx"
    source.write_bytes(onnx_scale(9.0))
    pushed = tritonctl(restarted, folder, "push", "large", source)
    assert pushed.returncode == 0, pushed.stderr
    assert stored_file(folder, "large").read_bytes() == onnx_scale(9.0)
    until(lambda: intact(restarted, "large")["status"] == "True")


def test_push_repairs_damage_that_no_scrub_has_found(folder: Path) -> None:
    off = settings_for(folder / "second", embedded=False, scrub=ScrubSettings(enabled=False))
    source = folder / "model.onnx"
    source.write_bytes(onnx_scale(8.0))
    with serving(off) as api:
        api.publish("m", onnx_scale(8.0))
        stored = folder / "second" / "store" / blob_key(sha256(onnx_scale(8.0)))
        tamper(stored, *MODELS["small"])
        pushed = tritonctl(api, folder, "push", "m", source)
        assert pushed.returncode == 0, pushed.stderr
        assert "sending the file again" in pushed.stderr
        assert stored.read_bytes() == onnx_scale(8.0)
        assert intact(api, "m")["status"] == "True"
