"""A process is killed at every store operation of an action: no partial state, no loss, and the next try succeeds."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controlplane.domain.names import Reference
from controlplane.errors import NotFoundError
from controlplane.registry.cache import BlobCache
from controlplane.registry.registry import Registry
from controlplane.settings import GcSettings
from controlplane.storage.filesystem import FilesystemStore
from tests.support.registries import artifact, new_registry, require_readable

pytestmark = pytest.mark.slow

Crash = Callable[..., Iterator[Registry]]
COMMIT_LATEST = 100
"""A number larger than the operations of any action."""


@pytest.fixture(scope="module")
def killer() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.support.registry_killer"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


@pytest.fixture
def crash(killer: subprocess.Popen[str], tmp_path: Path) -> Crash:
    """Yield a registry on the store after each crash, until the action completes."""

    def crash_everywhere(action: str) -> Iterator[Registry]:
        template = tmp_path / "template"
        registry = new_registry(FilesystemStore(template), tmp_path / "cache")
        manifest, files = artifact(tmp_path / "first", model=b"one", weights=b"shared")
        registry.publish("m", manifest, files, actor="tests")
        manifest, files = artifact(tmp_path / "garbage", model=b"garbage")
        registry.publish("gone", manifest, files, actor="tests")
        registry.delete_model("gone", actor="tests")
        for when in ("before", "after"):
            for at in range(COMMIT_LATEST):
                store = tmp_path / f"{when}{at}"
                shutil.copytree(template, store)
                request = {
                    "action": action,
                    "when": when,
                    "at": at,
                    "store": str(store),
                    "cache": str(tmp_path / "child"),
                    "files": str(tmp_path / "second"),
                }
                assert killer.stdin is not None
                assert killer.stdout is not None
                killer.stdin.write(json.dumps(request) + "\n")
                killer.stdin.flush()
                status = int(killer.stdout.readline())
                yield Registry(
                    FilesystemStore(store),
                    BlobCache(tmp_path / "cache", 1 << 30),
                    head_max_age_seconds=0,
                    gc=GcSettings(upload_max_age_seconds=1e-6),
                )
                shutil.rmtree(store)
                if status == 0:
                    assert at >= 3  # it was killed a few times before it completed
                    break
                assert status == -signal.SIGKILL
            else:
                pytest.fail("the action never got through")

    return crash_everywhere


def require_tidy(registry: Registry, *, versions: list[int]) -> None:
    """Check that after a collection the bucket contains only what the live versions need."""
    registry.collect(dry_run=False, grace_seconds=0)
    needed: set[str] = set()
    for number in versions:
        needed.add(registry.resolve(Reference("m", version=number)).manifest)
        needed.update(blob.sha256 for blob in registry.manifest("m", number).blobs)
    assert {info.key.rpartition("/")[2] for info in registry.blobs.all()} == needed
    assert list(registry.store.list("publishing/")) == []


def live(registry: Registry) -> list[int]:
    try:
        return [entry.number for entry in registry.get_model("m").live_versions]
    except NotFoundError:
        return []


def test_publish_survives_a_crash_at_every_request(crash: Crash, tmp_path: Path) -> None:
    outcomes = set()
    for registry in crash("publish"):
        before = live(registry)
        outcomes.add(tuple(before))
        head = registry.get_model("m")
        assert head.aliases == ({} if before == [1] else {"champion": 2})  # set together with the version, or not set
        require_readable(registry, "m")
        manifest, files = artifact(tmp_path / "again", model=b"two", weights=b"shared")
        entry = registry.publish("m", manifest, files, actor="tests", aliases=["champion"], commit_id="job")
        assert entry.number == 2
        assert live(registry) == [1, 2]
        require_tidy(registry, versions=[1, 2])
        require_readable(registry, "m")
    assert outcomes == {(1,), (1, 2)}


def test_leftovers_of_a_crashed_publish_are_collected(crash: Crash) -> None:
    for registry in crash("publish"):
        require_tidy(registry, versions=live(registry))


def test_delete_version_survives_a_crash_at_every_request(crash: Crash) -> None:
    outcomes = set()
    for registry in crash("delete"):
        outcomes.add(tuple(live(registry)))
        require_readable(registry, "m")
        if live(registry):
            registry.delete_version("m", 1, actor="tests")
        require_tidy(registry, versions=[])
    assert outcomes == {(1,), ()}


def test_delete_model_survives_a_crash_at_every_request(crash: Crash) -> None:
    for registry in crash("delete_model"):
        if live(registry):
            require_readable(registry, "m")
            registry.delete_model("m", actor="tests")
        require_tidy(registry, versions=[])


def test_collect_survives_a_crash_at_every_request(crash: Crash, tmp_path: Path) -> None:
    for registry in crash("collect"):
        require_readable(registry, "m")
        manifest, files = artifact(tmp_path / "again", model=b"two")
        assert registry.publish("m", manifest, files, actor="tests").number == 2
        require_tidy(registry, versions=[1, 2])


def test_deploy_survives_a_crash_at_every_request(crash: Crash) -> None:
    outcomes = set()
    for registry in crash("deploy"):
        deployed = [revision.spec.version for revision in registry.deployments.list()]
        outcomes.add(tuple(deployed))
        if not deployed:
            registry.delete_version("m", 1, actor="tests")
    assert outcomes == {(), (1,)}
