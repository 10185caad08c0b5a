"""`make dist`: builds the wheel and the sdist into ``dist/`` and checks them in fresh environments.

1. The wheel that the sdist builds has the same files.
2. The wheel without extras: the commands start, `serve` runs and answers the thin client, and none of the heavy
   packages is there.
3. The wheel with ``[embedded]``, in a second environment: `tritonctl up` gives a Triton that answers.
4. The demo, in the same environment with the packages that its models need.

It takes some minutes and installs PyTorch. ``--no-demo`` leaves step 4 out.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.api import onnx_scale
from tests.support.processes import free_port
from tests.wheel.packages import ROOT, Built, build

_HEAVY = ("torch", "onnxruntime", "pytriton", "sklearn", "xgboost", "skops")
_DEMO_NEEDS = ("silero-vad",)


class Environment:
    """A fresh virtual environment with the wheel, and a data folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        dropped = ("PYTHON", "CONTROLPLANE_", "TRITONCTL_", "VIRTUAL_ENV")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
        bin_folder = folder / "venv" / "bin"
        self.bin = bin_folder
        self.variables = {**kept, "PATH": f"{bin_folder}:{kept['PATH']}", "TRITONCTL_DATA_DIR": str(self.data)}

    def install(self, *what: str) -> None:
        """Install packages with pip."""
        say(f"pip install {' '.join(what)}")
        self.run("python", "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), *what)

    def run(self, program: str, *arguments: str, timeout: float = 900) -> str:
        """Run a program of the environment outside the working tree, and return its output."""
        done = subprocess.run(
            [str(self.bin / program), *arguments],
            cwd=self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{program} {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    @contextlib.contextmanager
    def serving(self, *arguments: str) -> Iterator[None]:
        """Run `tritonctl` with these arguments in the background until it is ready, and stop it at the end."""
        log = self.folder / "log"
        with log.open("w") as sink:
            process = subprocess.Popen(
                [str(self.bin / "tritonctl"), *arguments],
                cwd=self.folder,
                env=self.variables,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + 300
            while not (self.data / "up.json").exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"tritonctl {' '.join(arguments)} did not become ready:\n{log.read_text()}")
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.wait(60)


def say(text: str) -> None:
    """Print what is done."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def check_sdist(built: Built, folder: Path) -> None:
    """Build a wheel from the sdist, and compare the files in it."""
    say("build a wheel from the sdist")
    with tarfile.open(built.sdist) as archive:
        archive.extractall(folder / "sources", filter="data")
    (source,) = (folder / "sources").iterdir()
    again = build(folder / "again", source=source)
    if difference := again.wheel_names() ^ built.wheel_names():
        sys.exit(f"the wheel from the sdist has other files: {sorted(difference)}")


def check_thin(built: Built, folder: Path) -> None:
    """Install the wheel alone; use the thin client with `serve`, without a Triton server."""
    place = Environment(folder)
    place.install(str(built.wheel))
    place.run("python", "-m", "pip", "check")
    heavy = place.run(
        "python", "-c", f"import importlib.util as u; print([n for n in {_HEAVY!r} if u.find_spec(n)])"
    ).strip()
    if heavy != "[]":
        sys.exit(f"the wheel without extras brings {heavy}")
    say(place.run("tritonctl", "--version").strip())
    place.run("tritonctl", "--help")
    grpc, http, metrics = (f"127.0.0.1:{free_port()}" for _ in range(3))
    triton = f"gpu0={grpc},http://{http},http://{metrics}/metrics,{folder / 'repository'}"
    (folder / "repository").mkdir()
    with place.serving("serve", "--port", str(free_port()), "--store", f"file://{folder}/store", "--triton", triton):
        (folder / "double.onnx").write_bytes(onnx_scale(2.0))
        place.run("tritonctl", "push", "double", "double.onnx", "--no-golden")
        models = json.loads(place.run("tritonctl", "models", "-o", "json"))
        if [one["name"] for one in models] != ["double"]:
            sys.exit(f"serve and the thin client: {models}")
    say("thin client and serve work without the extras")


def check_embedded(built: Built, folder: Path, *, demo: bool) -> None:
    """Install the wheel with its own Triton; run `up`, infer, and run the demo."""
    place = Environment(folder)
    place.install(f"{built.wheel}[embedded]")
    with place.serving("up", "--port", "0"):
        (folder / "double.onnx").write_bytes(onnx_scale(2.0))
        place.run("tritonctl", "push", "double", "double.onnx")
        place.run("tritonctl", "deploy", "double", "--wait")
        say(place.run("tritonctl", "infer", "double", "--sample").strip())
    if demo:
        place.install(f"{built.wheel}[embedded,torch]", *_DEMO_NEEDS)
        say(place.run("tritonctl", "demo").strip().splitlines()[-1])


def main() -> None:
    """Build, check, and leave both files in ``dist/``."""
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    built = build(dist)
    with tempfile.TemporaryDirectory(prefix="tritonctl-dist-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("sources", "again", "thin", "embedded"):
            (folder / part).mkdir()
        check_sdist(built, folder)
        check_thin(built, folder / "thin")
        check_embedded(built, folder / "embedded", demo="--no-demo" not in sys.argv)
    for path in (built.wheel, built.sdist):
        say(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
