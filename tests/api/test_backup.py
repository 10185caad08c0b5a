"""The backup of docs/guides/backup.md, made while a control plane is written to, and its restore."""

import itertools
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from controlplane.settings import StoreSettings
from controlplane.storage.filesystem import FilesystemStore
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.cli_forks import Ended, commands
from tests.support.registries import new_registry, require_readable

pytestmark = pytest.mark.slow

PARTS = (
    "layout",
    "store-id",
    "models",
    "deployments",
    "keys",
    "signatures",
    "reports",
    "footprints",
    "conditions",
    "blobs",
)
"""In the order of the documentation."""


def back_up(store: Path, backup: Path) -> None:
    backup.mkdir()
    for part in PARTS:
        if (store / part).is_file():
            shutil.copy(store / part, backup / part)
        elif (store / part).exists():
            shutil.copytree(store / part, backup / part)


class Traffic:
    """Publishes, moves aliases and changes labels until it is stopped."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.rounds = 0
        self.more = threading.Semaphore(0)

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait(self, rounds: int) -> None:
        for _ in range(rounds):
            assert self.more.acquire(timeout=120)

    def _run(self) -> None:
        for number in itertools.count(1):
            if self._stop.is_set():
                return
            self._api.publish(f"m{number % 2}", onnx_scale(number), aliases=["newest"])
            label = {"labels": {"round": str(number)}}
            self._api.ok(self._api.http.patch(f"/v1/models/m{number % 2}", json=label))
            self.rounds = number
            self.more.release()


def tritonctl(*arguments: str, **environment: str) -> Ended:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TRITONCTL_", "CONTROLPLANE_"))}
    return commands().run(arguments, cwd=Path.cwd(), env={**kept, **environment}, stdin=None, timeout=240)


def report_of(done: Ended, code: int) -> dict[str, Any]:
    assert done.code == code, f"{done.code}\n{done.out}\n{done.err}"
    report: dict[str, Any] = json.loads(done.out)
    return report


def test_backup_taken_under_traffic_can_be_restored(tmp_path: Path) -> None:
    store, backup = tmp_path / "store", tmp_path / "backup"
    settings = settings_for(tmp_path / "data", embedded=False, store=StoreSettings(url=store.as_uri()))
    with serving(settings) as api, Traffic(api) as traffic:
        traffic.wait(3)
        back_up(store, backup)
        traffic.wait(2)
    acknowledged = traffic.rounds

    # On a machine that knows nothing the copy is whole: it is just older.
    elsewhere = {"TRITONCTL_DATA_DIR": str(tmp_path / "elsewhere")}
    report = report_of(
        tritonctl("fsck", "--offline", "--store", backup.as_uri(), "--deep", "-o", "json", **elsewhere), 0
    )
    assert report["findings"] == []
    copied = new_registry(FilesystemStore(backup), tmp_path / "cache")
    for model in ("m0", "m1"):
        require_readable(copied, model)
    rounds = max(int(copied.get_model(model).labels.get("round", 0)) for model in ("m0", "m1"))
    assert rounds < acknowledged

    # The control plane starts on it with its old data folder, and notices what it lacks.
    restored = settings_for(tmp_path / "data", embedded=False, store=StoreSettings(url=backup.as_uri()))
    with serving(restored) as api:
        here = {"TRITONCTL_DATA_DIR": str(tmp_path / "unused"), "TRITONCTL_URL": api.url}
        report = report_of(tritonctl("fsck", "-o", "json", **here), 7)
        lost = [one["subject"] for one in report["findings"]]
        assert {one["reason"] for one in report["findings"]} == {"ChainWentBackwards"}
        assert set(lost) == {"models/m0", "models/m1"}
        api.problem(api.http.patch("/v1/models/m0", json={"labels": {}}), 409, "store-went-backwards")
        refused = tritonctl("show", "m0", **here)
        assert refused.code == 5
        assert "tritonctl fsck --restore models/m0" in refused.err

        # What was published after the backup has no files there; labels and aliases are in this instance's memory.
        shown = tritonctl("fsck", "--restore", "models/m0", "--reason", "restored", **here)
        assert shown.code == 7
        assert "resolved: models/m0: revision" in shown.out
        assert "Missing" in shown.out
        report = report_of(tritonctl("fsck", "--accept", "models/m1", "-o", "json", **here), 7)
        assert all(one["subject"].startswith("m0:") for one in report["findings"])
        missing = {one["subject"].partition(" ")[0].partition(":")[2] for one in report["findings"]}
        for number in sorted(missing, key=int):
            alias = api.ok(api.http.get("/v1/models/m0"))["aliases"].get("newest")
            if str(alias) == number:
                api.http.delete("/v1/models/m0/aliases/newest")
            assert api.http.delete(f"/v1/models/m0/versions/{number}").status_code == 204
        assert tritonctl("fsck", "--deep", **here).code == 0
        nothing = tritonctl("fsck", "--accept", "models/m1", **here)
        assert nothing.code == 5
        assert "nothing to accept: models/m1 is intact" in nothing.err

        # Numbers of versions that were lost are not used again, and everything goes on.
        before = api.ok(api.http.get("/v1/models/m1"))
        published = api.publish("m1", onnx_scale(999.0))
        numbers = [
            revision.number
            for revision in new_registry(FilesystemStore(store), tmp_path / "x").get_model("m1").versions
        ]
        assert published["version"] > max(numbers)
        assert api.ok(api.http.get("/v1/models/m1"))["name"] == before["name"]
