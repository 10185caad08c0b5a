"""The compose file is valid: read by the real `docker-compose config`, where it is installed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(
    not shutil.which("docker-compose") and not os.environ.get("CI"), reason="docker-compose is not installed"
)
def test_docker_compose_reads_the_file() -> None:
    environment = {
        **os.environ,
        "MINIO_ROOT_USER": "models",
        "MINIO_ROOT_PASSWORD": "password",
        "TRITON_CONTROL_KEY": "k3y",
    }
    result = subprocess.run(
        ["docker-compose", "-f", "docker-compose.yml", "config"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for service in ("minio:", "bucket:", "triton:", "controlplane:"):
        assert service in result.stdout
    # The same key on both sides.
    assert result.stdout.count("model-repository,trace,logging:tritonctl-key=$${TRITON_CONTROL_KEY}") == 2
    assert "TRITON_CONTROL_KEY: k3y" in result.stdout
    assert '"control_key": "k3y"' in result.stdout
