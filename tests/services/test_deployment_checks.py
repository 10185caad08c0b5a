"""What is refused before a deployment is recorded."""

from pathlib import Path

import pytest

from controlplane.domain.deployment import DeploymentSettings, DynamicBatching
from controlplane.domain.names import Reference
from controlplane.errors import InvalidConfigError
from controlplane.services.deployment_checks import DeploymentChecks
from controlplane.storage.filesystem import FilesystemStore
from tests.support.models import publish_affine
from tests.support.registries import new_registry


@pytest.mark.parametrize(
    "settings",
    [
        DeploymentSettings(dynamic_batching=DynamicBatching()),
        DeploymentSettings(config_overrides={"dynamic_batching": {}}),
    ],
)
def test_dynamic_batching_needs_golden_samples(tmp_path: Path, settings: DeploymentSettings) -> None:
    registry = new_registry(FilesystemStore(tmp_path / "store"), tmp_path / "cache")
    publish_affine(registry, "m", tmp_path, scale=2.0, golden=None)
    publish_affine(registry, "m", tmp_path, scale=2.0)
    without, proved = registry.get_model("m").versions
    checks = DeploymentChecks(registry)
    with pytest.raises(
        InvalidConfigError,
        match=r"without golden samples .* rows of a request to m:1 are independent; publish",
    ):
        checks.deploy(Reference("m"), without, settings, None, None)
    assert checks.deploy(Reference("m"), without, DeploymentSettings(), None, None).settings == DeploymentSettings()
    assert checks.deploy(Reference("m"), proved, settings, None, None).settings == settings
