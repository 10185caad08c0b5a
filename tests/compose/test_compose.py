"""Static checks of docker-compose.yml. `make compose-check` runs the file."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
SECRET = re.compile(r"SECRET|PASSWORD|CONTROL_KEY")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    document = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    found: dict[str, Any] = document["services"]
    return found


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Return the mounts of a service: source, target and mode."""
    return {volume.split(":")[0]: volume.partition(":")[2] for volume in service.get("volumes", ())}


def test_only_the_control_plane_mounts_its_data_folder(services: dict[str, Any]) -> None:
    """The data folder holds an admin key, so no service that keeps running may mount it but the control plane."""
    assert (
        mounts(services["controlplane"])["controlplane"]
        == services["controlplane"]["environment"]["TRITONCTL_DATA_DIR"]
    )
    others = {name for name, service in services.items() if "controlplane" in mounts(service)} - {"controlplane"}
    assert others == {"volumes"}, "only the service that sets the owners, and ends, may mount it as well"
    assert mounts(services["triton"]) == {"repository": "/srv/triton:ro"}


def test_services_are_hardened(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
    assert {name for name, service in services.items() if service.get("user", "").startswith("0")} == {"volumes"}
    for name in ("minio", "seaweedfs", "triton", "controlplane"):
        assert services[name]["healthcheck"]["test"], name
    for name in ("minio", "seaweedfs", "triton"):
        assert services[name]["user"] == "1000:1000", name


def test_ports_are_on_loopback_and_configurable(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for port in service.get("ports", ()):
            assert re.fullmatch(r"127\.0\.0\.1:\$\{\w+_PORT:-\d+\}:\d+", port), f"{name}: {port}"


def test_no_secret_has_a_default(tmp_path: Path) -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert not [name for name in re.findall(r"\$\{(\w+):-[^}]", text) if SECRET.search(name)]
    wanted = set(re.findall(r"\$\{(\w+):\?", text))
    assert {"S3_SECRET_ACCESS_KEY", "TRITON_CONTROL_KEY", "GRAFANA_PASSWORD"} <= wanted
    (tmp_path / "deploy").mkdir()
    for name in ("make-env.sh", "compose.env.example"):
        shutil.copy(ROOT / "deploy" / name, tmp_path / "deploy" / name)
    subprocess.run(["sh", "deploy/make-env.sh"], cwd=tmp_path, check=True, capture_output=True)
    written = tmp_path / ".env"
    assert written.stat().st_mode & 0o777 == 0o600
    lines = [line for line in written.read_text().splitlines() if line and not line.startswith("#")]
    values = dict(line.split("=", 1) for line in lines)
    assert wanted <= values.keys()
    secrets = [value for name, value in values.items() if SECRET.search(name)]
    assert len(set(secrets)) == len(secrets) == 3
    assert all(re.fullmatch(r"[0-9a-f]{48}", value) for value in secrets), "no `$`, which Compose would expand"
    before = written.read_text()
    again = subprocess.run(["sh", "deploy/make-env.sh"], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert again.returncode == 1
    assert "left alone" in again.stderr
    assert written.read_text() == before


def test_image_contains_no_secrets() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".env", "deploy/secrets", ".git"} <= set(ignored)
