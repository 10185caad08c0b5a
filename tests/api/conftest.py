"""The application, with a real Triton and without one."""

from collections.abc import Iterator

import pytest

from controlplane.settings import ApiSettings
from tests.support.api import Api, serving, settings_for


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The application with an embedded Triton and a folder as its store. Mark what uses it with ``triton``."""
    with serving(settings_for(tmp_path_factory.mktemp("api"), embedded=True)) as running:
        yield running


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The application without any Triton server: enough for everything but deployments."""
    folder = tmp_path_factory.mktemp("bare")
    limits = ApiSettings(port=0, max_upload_bytes=64 * 1024 * 1024)
    with serving(settings_for(folder, embedded=False, api=limits)) as running:
        yield running
