"""A private Docker daemon from Debian's packages, with compose and a base image. Needs root, apt and debootstrap."""

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = {"dockerd": "docker.io", "debootstrap": "debootstrap", "iptables": "iptables"}
MIRROR = "http://deb.debian.org/debian"
COMPOSE_RELEASE = "trixie"
"""The Debian release whose docker-compose is version 2; Debian 12 has 1.29, which cannot read the file."""


def say(text: str) -> None:
    print(f"compose-check: {text}", flush=True)


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 900) -> str:
    """Run a command and return its output; if it fails, the error contains the output."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False
    )
    if done.returncode:
        output = (done.stdout + done.stderr)[-6000:]
        raise RuntimeError(f"`{' '.join(str(part) for part in command)}` failed with {done.returncode}:\n{output}")
    return done.stdout


def install_packages() -> None:
    """Install Docker and debootstrap if they are missing."""
    missing = [
        package for program, package in PACKAGES.items() if shutil.which(program, path="/usr/sbin:/usr/bin") is None
    ]
    if missing:
        say(f"installing {', '.join(missing)}")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        run("apt-get", "update", "-q")
        run("apt-get", "install", "-y", "-q", "--no-install-recommends", *missing, env=environment)


def compose_program(folder: Path) -> Path:
    """Return a Docker Compose 2: the installed one, or Debian's next release's, unpacked under `folder`."""
    for plugins in (
        "/usr/libexec/docker/cli-plugins",
        "/usr/lib/docker/cli-plugins",
        "/usr/local/lib/docker/cli-plugins",
    ):
        installed = Path(plugins, "docker-compose")
        if installed.is_file():
            return installed
    unpacked = folder / "docker-compose"
    program = unpacked / "usr/libexec/docker/cli-plugins/docker-compose"
    if not program.is_file():
        say(f"fetching docker-compose of Debian {COMPOSE_RELEASE}")
        lists = folder / "apt"
        (lists / "lists/partial").mkdir(parents=True, exist_ok=True)
        keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
        (lists / "sources.list").write_text(f"deb [signed-by={keyring}] {MIRROR} {COMPOSE_RELEASE} main\n")
        options = [
            "-o", f"Dir::Etc::sourcelist={lists}/sources.list", "-o", "Dir::Etc::sourceparts=-",
            "-o", f"Dir::State::lists={lists}/lists", "-o", "APT::Sandbox::User=root",
        ]  # fmt: skip
        run("apt-get", *options, "update", "-q")
        run("apt-get", *options, "download", "docker-compose", cwd=lists)
        run("dpkg", "-x", next(lists.glob("docker-compose_*.deb")), unpacked)
    return program


@dataclass(frozen=True)
class Docker:
    """A running daemon and the programs that talk to it."""

    socket: str
    compose_program: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "DOCKER_HOST": self.socket}

    def __call__(self, *arguments: str | Path, timeout: float = 900) -> str:
        return run("/usr/bin/docker", *arguments, env=self.environment, timeout=timeout)

    def inspect(self, name: str) -> dict[str, object]:
        found: list[dict[str, object]] = json.loads(self("inspect", name))
        return found[0]

    def base_image(self, folder: Path, tag: str) -> None:
        """Make a Debian image with Python that reaches the package registries as this machine does."""
        if tag in self("images", "--format", "{{.Repository}}:{{.Tag}}").split():
            return
        root = folder / "base"
        if not (root / "usr/bin/pip").exists():
            say("making the base image with debootstrap")
            shutil.rmtree(root, ignore_errors=True)
            packages = "ca-certificates,python3,python3-pip"
            run("debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", root, MIRROR)
        for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            marker.unlink()
        python = root / "usr/bin/python"
        if not python.is_symlink():
            python.symlink_to("python3")
        settings = _machine_settings(root)
        archive = folder / "base.tar"
        run("tar", "-C", root, "-cf", archive, ".")
        changes = [part for name, value in settings.items() for part in ("--change", f"ENV {name}={value}")]
        self("import", *changes, archive, tag)
        archive.unlink()


def _machine_settings(root: Path) -> dict[str, str]:
    """Carry this machine's certificates and pip settings over into the image: pip there has to work as it does here."""
    settings: dict[str, str] = {}
    bundle = os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
    if Path(bundle).is_file():
        inside = root / "etc/ssl/certs/ca-certificates.crt"
        inside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle, inside)
        settings["SSL_CERT_FILE"] = settings["PIP_CERT"] = "/etc/ssl/certs/ca-certificates.crt"
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        if value := os.environ.get(name):
            settings[name] = value
    links = os.environ.get("PIP_FIND_LINKS", "")
    if links.startswith("/") and Path(links).is_dir():
        shutil.copytree(links, root / links.lstrip("/"), dirs_exist_ok=True)
        settings["PIP_FIND_LINKS"] = links
    return settings


@contextlib.contextmanager
def docker(folder: Path) -> Iterator[Docker]:
    """Start a daemon with everything it keeps under `folder`, and stop it with its containers."""
    folder.mkdir(parents=True, exist_ok=True)
    install_packages()
    compose = compose_program(folder)
    socket = f"unix://{folder}/docker.sock"
    log = folder / "dockerd.log"
    command = [
        "dockerd", "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec"), "--host", socket,
        "--pidfile", str(folder / "dockerd.pid"),
    ]  # fmt: skip
    with log.open("ab") as output:
        daemon = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        client = Docker(socket, compose)
        end = time.monotonic() + 60
        while True:
            try:
                client("version", timeout=10)
                break
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                if daemon.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"dockerd did not start: {log.read_text()[-3000:]}") from error
                time.sleep(0.2)
        yield client
    finally:
        daemon.terminate()
        try:
            daemon.wait(60)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
