"""`make compose-check`: runs the compose file from an empty machine to a rollback, in containers that it builds itself.

It installs Docker from Debian's packages if it is missing, makes a base image with debootstrap, builds the project's
image from the project's Dockerfile, and starts docker-compose.yml with the profile ``seaweedfs`` and without a GPU.
Two images have stand-ins, so that no container registry is needed: the official Triton image (the wheel's server behind
the same command line) and SeaweedFS's (the same program from its wheel). MinIO's image has none; the check only
verifies that the file with its profile is valid.

``COMPOSE_CHECK_DIR`` names a folder that keeps all images and layers for the next run.
"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from tests.compose.docker import Docker, docker, run, say
from tests.support.api import onnx_scale
from tests.support.processes import free_port

ROOT = Path(__file__).parent.parent.parent
LARGEST_IMAGE_BYTES = 2_000_000_000
BASE = "compose-check-base:local"
PROJECT = "composecheck"
SERVICES = ("seaweedfs", "triton", "controlplane")
"""The services that keep running; each is killed once."""


class Check:
    """A running project of docker-compose.yml."""

    def __init__(self, engine: Docker, checkout: Path) -> None:
        self.engine = engine
        self.checkout = checkout
        self.ports = {
            name: free_port() for name in ("API", "GATEWAY_HTTP", "GATEWAY_GRPC", "TRITON_HTTP", "TRITON_GRPC")
        }
        self.ports |= {name: free_port() for name in ("TRITON_METRICS", "S3")}
        self.environment = {
            **engine.environment,
            "COMPOSE_PROFILES": "seaweedfs",
            "S3_ENDPOINT_URL": "http://seaweedfs:8333",
            "PYTHON_IMAGE": BASE,
            "TRITON_IMAGE": "compose-check-triton:local",
            "SEAWEEDFS_IMAGE": "compose-check-weed:local",
            "DOCKER_BUILDKIT": "0",
            **{f"{name}_PORT": str(port) for name, port in self.ports.items()},
        }

    def compose(self, *arguments: str, timeout: float = 900) -> str:
        return run(
            self.engine.compose_program, "-p", PROJECT, "-f", "docker-compose.yml", "-f", "deploy/compose.cpu.yml",
            *arguments, cwd=self.checkout, env=self.environment, timeout=timeout,
        )  # fmt: skip

    def container(self, service: str) -> str:
        return self.compose("ps", "-a", "-q", service).strip()

    def inside(self, service: str, *command: str) -> str:
        """Run a command in a service's container."""
        return self.compose("exec", "-T", service, *command)

    def tritonctl(self, *arguments: str, key: Path) -> str:
        """Run the command line of this machine against the containers."""
        url = f"http://127.0.0.1:{self.ports['API']}"
        program = Path(sys.executable).with_name("tritonctl")
        return run(program, *arguments, "--url", url, "--api-key-file", key, env={**os.environ, "NO_COLOR": "1"})

    def infer(self, key: str) -> float:
        """Send ones to the model through the gateway; return the first value of the answer."""
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 1.0]}
        answer = httpx.post(
            f"http://127.0.0.1:{self.ports['GATEWAY_HTTP']}/v2/models/net/infer",
            json={"inputs": [tensor]},
            headers={"authorization": f"Bearer {key}"},
            timeout=60,
        )
        answer.raise_for_status()
        return float(answer.json()["outputs"][0]["data"][0])


def expect(condition: object, what: str) -> None:
    if not condition:
        raise AssertionError(what)
    say(f"ok: {what}")


def until(what: str, condition: Any, seconds: float = 180) -> None:
    """Wait until a condition holds; errors of HTTP count as "not yet"."""
    end, last = time.monotonic() + seconds, "nothing"
    while time.monotonic() < end:
        try:
            if condition():
                say(f"ok: {what}")
                return
        except (httpx.HTTPError, RuntimeError) as error:
            last = str(error)
        time.sleep(0.5)
    raise AssertionError(f"timed out after {seconds:g} s: {what}; last error: {last}")


def build(check: Check) -> None:
    """Build the project's image from its Dockerfile, and the stand-ins."""
    say("building the images")
    check.compose("build", "controlplane", timeout=1800)
    size = int(check.engine("image", "inspect", "tritonctl:local", "--format", "{{.Size}}"))
    expect(size < LARGEST_IMAGE_BYTES, f"the image has {size / 1e9:.2f} GB, below {LARGEST_IMAGE_BYTES / 1e9:.1f} GB")
    for tag, dockerfile, argument in (
        ("compose-check-triton:local", "triton.Dockerfile", "CONTROLPLANE_IMAGE=tritonctl:local"),
        ("compose-check-weed:local", "weed.Dockerfile", f"BASE_IMAGE={BASE}"),
    ):
        run(
            "/usr/bin/docker", "build", "-q", "-t", tag, "-f", dockerfile, "--build-arg", argument, ".",
            cwd=check.checkout / "tests/compose", env=check.environment, timeout=1800,
        )  # fmt: skip


def hardening(check: Check) -> None:
    """Check that nothing runs as root, file systems are read-only, and Triton has no access to the control plane."""
    for service in SERVICES:
        state: Any = check.engine.inspect(check.container(service))
        expect(state["Config"]["User"] not in {"", "0", "0:0", "root"}, f"{service} does not run as root")
        expect(state["HostConfig"]["ReadonlyRootfs"], f"{service} has a read-only root file system")
        expect(state["Config"].get("Healthcheck"), f"{service} has a health check")
    found = check.inside("triton", "sh", "-c", "find / -name 'up.key' -not -path '/proc/*' 2>/dev/null; true")
    expect(not found.strip(), "Triton's container has no key of the control plane")
    written = check.inside("triton", "sh", "-c", "touch /srv/triton/models/x 2>&1; true")
    expect("Read-only" in written, "Triton cannot write to its model repository")


def main_job(check: Check, folder: Path) -> str:
    """Run the main workflow from the first key to a rollback; return an API key."""
    refused = httpx.get(f"http://127.0.0.1:{check.ports['API']}/v1/models", timeout=30)
    expect(refused.status_code == 401, "before a key exists, the API refuses requests")
    created = check.inside(
        "controlplane", "tritonctl", "keys", "create", "root", "--scope", "admin", "--offline", "-o", "json"
    )
    key = next(word.strip('",') for word in created.split() if "tck_" in word)
    key_file = folder / "key"
    key_file.touch(mode=0o600)
    key_file.write_text(key)
    for version, factor in ((1, 3.0), (2, 4.0)):
        path = folder / f"net{version}.onnx"
        path.write_bytes(onnx_scale(factor))
        until("the key counts", lambda path=path: check.tritonctl("push", "net", str(path), key=key_file), 30)
        say(check.tritonctl("deploy", f"net:{version}", "--wait", key=key_file).strip().splitlines()[0])
        expect(check.infer(key) == factor, f"version {version} answers through the gateway")
    say(check.tritonctl("rollback", "net", key=key_file).strip().splitlines()[0])
    expect(check.infer(key) == 3.0, "after the rollback version 1 answers")
    return key


def restarts(check: Check, key: str) -> None:
    """Check that each killed container restarts, and that everything works after `down` and `up`."""
    for service in SERVICES:
        before: Any = check.engine.inspect(check.container(service))
        pid = before["State"]["Pid"]
        os.kill(pid, 9)
        until(
            f"{service} was killed and runs again",
            lambda service=service, pid=pid: (
                check.engine.inspect(check.container(service))["State"]["Pid"]  # type: ignore[index]
                not in {0, pid}
            ),
        )
        until(f"the model answers after {service} was killed", lambda: check.infer(key) == 3.0)
    check.compose("down", "--timeout", "30")
    check.compose("up", "-d", "--wait", "--wait-timeout", "240")
    until("the model answers after down and up", lambda: check.infer(key) == 3.0)


def main() -> None:
    if os.geteuid() != 0:
        sys.exit("compose-check needs root: it installs Docker and starts a daemon of its own")
    kept = os.environ.get("COMPOSE_CHECK_DIR")
    folder = Path(kept or tempfile.mkdtemp(prefix="compose-check-"))
    checkout = folder / "checkout"
    shutil.rmtree(checkout, ignore_errors=True)
    run("git", "clone", "-q", ROOT, checkout)
    run("sh", "deploy/make-env.sh", cwd=checkout)
    with docker(folder) as engine:
        engine.base_image(folder, BASE)
        check = Check(engine, checkout)
        for profile in ("minio", "seaweedfs", "minio,monitoring"):
            run(
                engine.compose_program, "-f", "docker-compose.yml", "config", "-q",
                cwd=checkout, env={**check.environment, "COMPOSE_PROFILES": profile},
            )  # fmt: skip
        build(check)
        try:
            check.compose("up", "-d", "--wait", "--wait-timeout", "240")
            hardening(check)
            restarts(check, main_job(check, folder))
        except BaseException:
            print(check.compose("ps", "-a"), check.compose("logs", "--tail", "60"), sep="\n")
            raise
        finally:
            check.compose("down", "-v", "--timeout", "10")
    if not kept:
        shutil.rmtree(folder, ignore_errors=True)
    print("compose-check: passed")


if __name__ == "__main__":
    main()
