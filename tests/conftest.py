"""Servers that several areas' tests share: started once per run, and only if a test asks for them."""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support import ceph as ceph_support
from tests.support.moto import moto_server
from tests.support.s3server import S3Server
from tests.support.triton import RunningTriton, running_triton

# No test may reach a real account by chance, whatever the machine's own configuration says.
for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
    os.environ.pop(name, None)
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull

# A file's tests run in one process, so the files that take minutes start first. Otherwise the last of them runs alone.
_SLOWEST_FIRST = (
    *(
        "faults",
        "hosts",
        "agent",
        "reconciler",
        "converters",
        "gateway",
        "cli",
        "api",
        "security",
        "tuning",
        "monitoring",
        "gpu",
        "cases",
        "triton_format",
    ),
    *("triton", "services", "storage", "registry", "memory", "domain"),
)


def pytest_configure() -> None:
    """Accept SIGINT, which a shell tells programs in the background to ignore: processes of tests inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the files by how long they take: those with long tests first, then area by area."""
    tests = config.rootpath / "tests"
    files = {item.path for item in items if item.get_closest_marker("long")}

    def position(item: pytest.Item) -> tuple[bool, int]:
        area = item.path.relative_to(tests).parts[0] if item.path.is_relative_to(tests) else ""
        place = _SLOWEST_FIRST.index(area) if area in _SLOWEST_FIRST else len(_SLOWEST_FIRST)
        return item.path not in files, place

    items.sort(key=position)


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """moto's S3 server."""
    with moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def ceph() -> Iterator[S3Server]:
    """Ceph's S3 gateway. Mark what uses it with ``ceph``."""
    if missing := ceph_support.missing_programs():
        reason = f"Ceph is not installed ({', '.join(missing)} missing); see tests/support/ceph.py"
        if ceph_support.must_run():
            pytest.fail(reason)
        pytest.skip(reason)
    with ceph_support.ceph_server() as server:
        yield server


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    """A real Triton server with a repository of its own. Mark what uses it with ``triton``; unload what you load."""
    with running_triton(tmp_path_factory.mktemp("triton")) as running:
        yield running
