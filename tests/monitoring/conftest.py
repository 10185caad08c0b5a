"""What the tests of monitoring share: a real application with a real Triton."""

from collections.abc import Iterator

import pytest

from controlplane.settings import MonitoringSettings
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.receiver import Receiver


@pytest.fixture(scope="package")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The application with a deployed model, ``net``, watched five times a second. Mark with ``triton``."""
    monitoring = MonitoringSettings(interval_seconds=0.2, objective_interval_seconds=0.2)
    settings = settings_for(tmp_path_factory.mktemp("watched"), embedded=True, monitoring=monitoring)
    with serving(settings) as api:
        api.publish("net", onnx_scale(2))
        api.deploy("net:1", bake_seconds=0)
        yield api


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A real HTTP receiver of webhooks."""
    one = Receiver()
    one.start()
    yield one
    one.stop()
