"""The script of `demo`: real commands, each shown as a user would type it, in a folder that is removed afterwards."""

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from rich.text import Text

from controlplane.cli.output import Output, span
from controlplane.cli.session import Session
from controlplane.client.discovery import LOG_NAME, UpRecord
from controlplane.client.errors import OperationFailedError
from controlplane.errors import NotFoundError

_SAMPLE_RATE = 16_000
_WINDOW = 512
_CONTEXT = 64

_ASK = '''"""An ordinary Triton client: it uses Triton's own port and nothing of the control plane."""
import sys
import numpy
import tritonclient.grpc as grpc

# Triton has no scalars: send them as arrays with one element.
arrays = {name: numpy.atleast_1d(array) for name, array in numpy.load("speech.npz").items()}
types = {"f": "FP32", "i": "INT64"}
inputs = [grpc.InferInput(name, arrays[name].shape, types[arrays[name].dtype.kind]) for name in arrays]
for tensor in inputs:
    tensor.set_data_from_numpy(arrays[tensor.name()])
answer = grpc.InferenceServerClient(sys.argv[1]).infer("vad", inputs)
version = answer.get_response().model_version
print(f"version {version}: speech probability {answer.as_numpy('output')[0, 0]:.4f}")
'''

_NET = '''"""A small PyTorch model. Run as a script, it writes random weights."""
import torch
from torch import nn


def build() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4),
        nn.Flatten(), nn.Linear(8 * 7 * 7, 10), nn.Softmax(-1),
    )


if __name__ == "__main__":
    from safetensors.torch import save_file

    torch.manual_seed(7)
    save_file(build().state_dict(), "digits.safetensors")
'''


def run(session: Session, *, keep: bool) -> None:
    """Run the whole demonstration.

    Raises:
        NotFoundError: The package with the model is not installed.
        OperationFailedError: A command failed.
    """
    models = _silero()
    folder = Path(tempfile.mkdtemp(prefix="tritonctl-demo-"))
    folder.chmod(0o755)  # a sandboxed conversion reads the factory as another user; the data folder in it is private
    stage = Sandbox(session.out(), folder)
    started = time.monotonic()
    try:
        _prepare(folder, models)
        _publish(stage)
        _convert(stage)
        _forward_and_back(stage)
        if keep:
            stage.say(f"The control plane keeps running in {folder}; use it with TRITONCTL_DATA_DIR={stage.data_dir}")
        else:
            stage.say("End of the demo: stop Triton and remove the folder.")
            stage.run("tritonctl", "down")
    finally:
        if not keep:
            stage.clean()
    stage.say(f"The demo took {span(time.monotonic() - started)}.")


def _publish(stage: "Sandbox") -> None:
    stage.say("Start Triton, the registry and the API on this machine, with free ports and a temporary folder.")
    stage.run("tritonctl", "up", "--detach", "--port", "0")
    stage.say("Publish a real model: Silero's voice activity detector, as its package ships it. The model is run once")
    stage.say("on the given input; Triton's outputs will be compared with the recorded ones.", gap=False)
    stage.run("tritonctl", "push", "vad", "silero_vad.onnx", "--samples", "speech.npz", "--alias", "champion")
    stage.say("The authors' smaller export, for 16 kHz only, becomes version 2.")
    stage.run("tritonctl", "push", "vad", "silero_vad_16k_op15.onnx", "--samples", "speech.npz", "--label", "rate=16k")
    stage.say("A TorchScript file does not describe its inputs, so they are derived from the sample. This model keeps")
    stage.say(
        "internal state, so recorded outputs cannot prove it; the push reports that. We deploy the ONNX file.",
        gap=False,
    )
    stage.run("tritonctl", "push", "vad-torchscript", "silero_vad.jit", "--samples", "window.npz")
    stage.run("tritonctl", "models")
    stage.run("tritonctl", "show", "vad:1")


def _convert(stage: "Sandbox") -> None:
    stage.say("Publish a PyTorch model: a factory in digits_net.py, and weights. Triton cannot serve it directly.")
    stage.run("python", "digits_net.py")
    stage.run("tritonctl", "push", "digits.safetensors")
    stage.say("Convert it to ONNX and to TorchScript. The original and the result are run on the same inputs; a result")
    stage.say("with different outputs is not published.", gap=False)
    for target in ("onnx", "torchscript"):
        arguments = ["--to", target, "--factory", "digits_net:build", "--trust", "--batched"]
        stage.run("tritonctl", "convert", "digits:1", *arguments, "--input", "image:FP32[-1,1,28,28]")
    stage.run("tritonctl", "versions", "digits")
    stage.run("tritonctl", "deploy", "digits:3", "--wait")
    stage.run("tritonctl", "infer", "digits", "--sample")


def _forward_and_back(stage: "Sandbox") -> None:
    stage.say("Deploy version 1: load it into Triton and prove it with the recorded outputs; only then it is Ready.")
    stage.run("tritonctl", "deploy", "vad:1", "--wait")
    stage.say("Send requests through the control plane, and through Triton's own port.")
    stage.run("tritonctl", "infer", "vad", "--input", "speech.npz")
    stage.run("tritonctl", "servers")
    grpc_url = stage.servers()[0]["grpc_url"]
    stage.run("python", "ask_triton.py", str(grpc_url))
    stage.say("Deploy version 2: load it beside version 1, prove it, and make it active. No request is dropped.")
    stage.run("tritonctl", "deploy", "vad:2", "--wait", "--reason", "half the size")
    stage.run("python", "ask_triton.py", str(grpc_url))
    stage.run("tritonctl", "ps")
    stage.say("Roll back: version 1 is still loaded, so the rollback needs no load.")
    stage.run("tritonctl", "rollback", "vad", "--reason", "demonstration")
    stage.run("python", "ask_triton.py", str(grpc_url))
    stage.run("tritonctl", "ps")
    stage.run("tritonctl", "history", "vad")


class Sandbox:
    """Shows commands and runs them in the demo's folder."""

    def __init__(self, out: Output, folder: Path) -> None:
        self._out = out
        self._folder = folder
        self.data_dir = folder / "data"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("TRITONCTL_", "CONTROLPLANE_"))}
        self._environment = {
            **kept,
            "TRITONCTL_DATA_DIR": str(self.data_dir),
            # The control plane's conversion worker finds the factory of the PyTorch model here.
            "PYTHONPATH": os.pathsep.join(part for part in (str(folder), os.environ.get("PYTHONPATH")) if part),
        }

    def say(self, text: str, *, gap: bool = True) -> None:
        """Print what the next command does."""
        self._out.line(Text(f"{chr(10) * gap}# {text}", style="italic cyan"))

    def run(self, program: str, *arguments: str) -> None:
        """Show a command and run it; its output goes to ours.

        Raises:
            OperationFailedError: The command failed.
        """
        shown = shlex.join([program, *arguments])
        self._out.line(Text.assemble(("\n$ ", "dim"), (shown, "bold")))
        sys.stdout.flush()
        result = subprocess.run([*_PROGRAMS[program], *arguments], cwd=self._folder, env=self._environment, check=False)
        if result.returncode:
            raise OperationFailedError(
                f"`{shown}` failed with exit code {result.returncode}; the end of the control plane's log:\n"
                f"{self._log()}"
            )

    def servers(self) -> Sequence[Mapping[str, object]]:
        """Return the output of `tritonctl servers -o json`."""
        result = subprocess.run(
            [*_PROGRAMS["tritonctl"], "servers", "-o", "json"],
            cwd=self._folder,
            env=self._environment,
            check=True,
            capture_output=True,
        )
        servers: list[dict[str, object]] = json.loads(result.stdout)
        return servers

    def clean(self) -> None:
        """Stop what is still running and remove the folder."""
        if UpRecord.read(self.data_dir) is not None:
            with suppress(subprocess.TimeoutExpired):
                subprocess.run(
                    [*_PROGRAMS["tritonctl"], "down"],
                    env=self._environment,
                    check=False,
                    capture_output=True,
                    timeout=60,
                )
        shutil.rmtree(self._folder, ignore_errors=True)

    def _log(self) -> str:
        from controlplane.cli.workflows.up import log_tail

        return log_tail(self.data_dir / LOG_NAME, 25)


_PROGRAMS = {
    "tritonctl": (sys.executable, "-m", "controlplane.cli.main"),
    "python": (sys.executable,),
}


def _prepare(folder: Path, models: Path) -> None:
    """Create the files that a user would have: model files, a request, and two short scripts."""
    for name in ("silero_vad.onnx", "silero_vad_16k_op15.onnx", "silero_vad.jit"):
        shutil.copyfile(models / name, folder / name)
    (folder / "digits_net.py").write_text(_NET, "utf-8")
    (folder / "ask_triton.py").write_text(_ASK, "utf-8")
    # A window of voiced sound: a falling tone of 140 Hz with its overtones. The detector expects the 64 samples before
    # the window in front of it.
    seconds = np.arange(_WINDOW + _CONTEXT) / _SAMPLE_RATE
    overtones = [np.sin(2 * np.pi * 140 * k * seconds * (1 - 0.5 * seconds)) / k for k in range(1, 12)]
    sound = (0.2 * np.sum(overtones, axis=0)).astype(np.float32)[None, :]
    rate = np.asarray(_SAMPLE_RATE, np.int64)
    np.savez(folder / "speech.npz", input=sound, state=np.zeros((2, 1, 128), np.float32), sr=rate)
    np.savez(folder / "window.npz", x=sound[:, _CONTEXT:], sr=rate)


def _silero() -> Path:
    """Return the folder of the model files without importing the package, which would import torch."""
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or not spec.submodule_search_locations:
        raise NotFoundError("the demo needs the silero-vad package: pip install 'triton-control-plane[all]'")
    return Path(next(iter(spec.submodule_search_locations))) / "data"
