"""What the code of a model can reach, looked at from inside: in a sandbox, in the real Triton, in a conversion."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from controlplane.domain.manifest import Format
from controlplane.domain.signature import DataType, TensorSpec
from controlplane.errors import InvalidInputError
from controlplane.sandbox import Confinement, Sandbox, View, choose_sandbox, find_sandbox
from controlplane.settings import TritonSettings
from converters.jobs import ConversionResult, ConvertJob
from converters.options import ConversionOptions
from converters.runner import run_worker
from tests.support.api import Api, onnx_scale, settings_for
from tests.support.keys import guarded_api, made, with_key
from tests.support.models import publish_affine
from tests.support.reach import LABELS, PROBE, documented

MARK = "a-secret-in-the-environment"

# In CI they run, and fail, where nothing confines.
may_skip = not find_sandbox().confines and os.environ.get("CI", "").lower() not in {"1", "true", "yes"}
needs_namespaces = pytest.mark.skipif(may_skip, reason=find_sandbox().reason)


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def given(folder: Path, port: int) -> dict[str, Any]:
    """A data folder as `up` has it, and where the probe looks."""
    for name in ("store", "model_repository"):
        (folder / name).mkdir(parents=True)
        (folder / name / "other").write_text("x")
    (folder.parent / "home").mkdir()
    (folder.parent / "home" / ".netrc").write_text("secret")
    (folder / "up.key").write_text("tck_…")
    (folder / "up.key").chmod(0o600)
    return {
        "key": str(folder / "up.key"),
        "store": str(folder / "store"),
        "repository": str(folder / "model_repository"),
        "mark": MARK,
        "pid": os.getpid(),
        "exe": str(Path("/proc/self/exe").readlink()),
        "home": str(folder.parent / "home"),
        "port": port,
    }


def reached(output: str) -> dict[str, bool]:
    line = next(line for line in output.splitlines() if line.startswith("REACH"))
    found: dict[str, bool] = json.loads(line.removeprefix("REACH"))
    return found


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (0, Confinement.NAMESPACE_AND_USER),
        (1, Confinement.NAMESPACE),
        (2, Confinement.NONE),
    ],
)
def test_code_reaches_only_what_the_threat_model_states(
    tmp_path: Path, listening: int, column: int, kind: Confinement
) -> None:
    if kind is not Confinement.NONE and may_skip:
        pytest.skip(find_sandbox().reason)
    if kind is Confinement.NAMESPACE_AND_USER and os.geteuid() != 0:
        pytest.skip("another user needs root")
    checkout = tmp_path / "checkout"
    data = checkout / "data"
    where = given(data, listening)
    (checkout / "home").rename(tmp_path / "home")
    where["home"] = str(tmp_path / "home")
    sandbox = Sandbox(kind, bwrap=shutil.which("bwrap") or "", hidden=(data,))
    # The folder around it is there to read, as a checkout with a data folder in it would be.
    view = View(read=(checkout, data / "model_repository"), network=True)
    # The control plane's process here is one that has a secret in its environment.
    parent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env={**os.environ, "S": MARK})
    try:
        command = sandbox.command([sys.executable, "-I", "-c", PROBE, json.dumps(where)], view)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    finally:
        parent.kill()
        parent.wait()
    assert done.returncode == 0, done.stderr
    found = {LABELS[name]: "yes" if works else "no" for name, works in reached(done.stdout).items()}
    said = {label: columns[column] for label, columns in documented().items() if label in LABELS.values()}
    assert found == said


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A control plane with keys and a Triton of its own, as an administrator sees it."""
    before = os.environ.get("TRITONCTL_SECRET_OF_A_TEST")
    os.environ["TRITONCTL_SECRET_OF_A_TEST"] = MARK
    try:
        triton = TritonSettings(embedded=True, load_timeout_seconds=60)
        with guarded_api(settings_for(tmp_path_factory.mktemp("confined"), embedded=True, triton=triton)) as api:
            yield api
    finally:
        os.environ.pop("TRITONCTL_SECRET_OF_A_TEST") if before is None else None


@pytest.mark.triton
@needs_namespaces
def test_code_in_the_real_triton_is_confined(root: Api, tmp_path: Path) -> None:
    """The attack of `tests/cases/deploy_key_runs_code.sh` by a key that may bring code: it runs, and finds little."""
    data = root.plane.settings.data_dir
    (data / "up.key").write_text(root.plane.keys.local_token)
    publish_affine(root.plane.registry, "other", tmp_path, scale=2.0)
    assert root.deploy("other:1")["state"] == "succeeded"
    where = {
        "key": str(data / "up.key"),
        "store": str(data / "store"),
        "repository": str(data / "model_repository"),
        "mark": MARK,
        "pid": os.getpid(),
        "exe": str(Path("/proc/self/exe").readlink()),
        "home": str(tmp_path / "home"),
        "port": int(root.url.rpartition(":")[2]),
    }
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".netrc").write_text("secret")
    (data / "model_repository" / "other" / "other").write_text("x")
    where["repository"] = str(data / "model_repository" / "other")
    probe = PROBE.replace("GIVEN", json.dumps(where))
    activate = f"""
cat > /var/tmp/probe.py <<'PROGRAM'
{probe}
PROGRAM
{{ python3 /var/tmp/probe.py; id -u; grep -laz tritonctl-key /proc/[0-9]*/cmdline
for p in /proc/[0-9]*; do grep -qaz other/1 $p/cmdline && head -c 1 $p/maps > /dev/null && echo MEMORY; done
echo; }} > /var/tmp/report.part 2>&1
mv /var/tmp/report.part /var/tmp/report
"""
    files = {"model.onnx": onnx_scale(2.0), "bin/activate": activate.encode()}
    with with_key(root, root.http, "coder", "code") as coder:
        coder.done(coder.http.post("/v1/models/evil/versions", json={"upload_id": coder.upload(files)}))
        settings = {"parameters": {"EXECUTION_ENV_PATH": "$$TRITON_MODEL_DIRECTORY/1"}}
        assert coder.deploy("evil:1", **settings)["state"] == "succeeded"
        assert root.infer("evil", [1.0, 2.0]) == ([2.0, 4.0], 1)
    report = (data / "triton" / "tmp" / "report").read_text()
    found = reached(report)
    assert {name for name, works in found.items() if works} == {"others", "loopback"}
    if os.geteuid() == 0:
        assert str(find_sandbox().uid) in report.splitlines()
    # What the documentation says of models in one Triton: no protection from each other.
    said = documented()
    assert said["memory of other models in the same Triton, and so their requests"][0] == "yes"
    assert "MEMORY" in report
    assert said["the control key of its own Triton"][0] == "yes"
    assert "/cmdline" in report


@pytest.mark.triton
def test_deploy_key_cannot_run_code(root: Api, tmp_path: Path) -> None:
    """The attack itself, as a program; see `tests/cases`."""
    (tmp_path / "model.onnx").write_bytes(onnx_scale(2.0))
    secret, holder = made(root, root.http, "team-a", "deploy", models=["team-a-*"])
    holder.close()
    (tmp_path / "team-a.key").write_text(secret)
    out = root.plane.settings.data_dir / "triton" / "tmp" / "ran"
    script = Path(__file__).parents[1] / "cases" / "deploy_key_runs_code.sh"
    arguments = [
        Path(sys.executable).parent / "tritonctl",
        root.url,
        tmp_path / "team-a.key",
        tmp_path / "model.onnx",
        out,
    ]
    done = subprocess.run([str(script), *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "needs the scope 'code'" in done.stdout
    assert "ok: nothing ran" in done.stdout
    assert root.http.get("/v1/deployments/team-a-evil").status_code == 404


@needs_namespaces
def test_code_in_a_conversion_is_confined(tmp_path: Path, listening: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONCTL_SECRET_OF_A_TEST", MARK)
    data = tmp_path / "data"
    where = given(data, listening)
    modules = tmp_path / "modules"
    modules.mkdir()
    body = "\n".join(f"    {line}" for line in PROBE.replace("GIVEN", json.dumps(where)).splitlines())
    body = body.replace("json.loads(sys.argv[1]) if len(sys.argv) > 1 else ", "")
    (modules / "prober.py").write_text(
        f"import torch\ndef build():\n{body}\n    print('UID', os.getuid())\n    return torch.nn.Linear(2, 1)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(modules))
    weights = tmp_path / "net.safetensors"
    save_file(torch.nn.Linear(2, 1).state_dict(), str(weights))
    weights.chmod(0o644)  # as the blob cache has it
    job = ConvertJob(
        source=weights,
        options=ConversionOptions(
            target=Format.TORCHSCRIPT,
            factory="prober:build",
            trust=True,
            inputs=(TensorSpec(name="x", dtype=DataType.FP32, shape=(-1, 2)),),
        ),
        output_dir=data / "work" / "out",
    )
    result = run_worker(job, sandbox=choose_sandbox("auto", data))
    assert isinstance(result, ConversionResult)
    found = reached(result.log)
    assert {name for name, works in found.items() if works} == set()
    if os.geteuid() == 0:
        assert f"UID {find_sandbox().uid}" in result.log


def test_symlink_in_a_conversion_result_is_not_followed(tmp_path: Path) -> None:
    from converters.worker_output import read_own

    (tmp_path / "key").write_text("secret")
    (tmp_path / "result.json").symlink_to(tmp_path / "key")
    assert read_own(tmp_path / "result.json") is None
    os.mkfifo(tmp_path / "pipe")
    assert read_own(tmp_path / "pipe") is None
    assert read_own(tmp_path / "key") == b"secret"
    assert read_own(tmp_path / "key", 3) is None


def test_missing_sandbox_is_reported_or_prevents_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    find_sandbox.cache_clear()
    try:
        sandbox = choose_sandbox("auto")
        assert sandbox.confinement is Confinement.NONE
        assert "install the package `bubblewrap`" in sandbox.warning
        with pytest.raises(InvalidInputError, match="is required"):
            choose_sandbox("required")
        assert sandbox.command(["x"], View()) == ["x"]
    finally:
        find_sandbox.cache_clear()


@needs_namespaces
def test_confined_process_ends_with_its_parent(tmp_path: Path) -> None:
    """A killed launcher leaves nothing behind, whatever confines the server."""
    inner = [sys.executable, "-I", "-c", "import time; print('up', flush=True); time.sleep(600)"]
    outer = f"import subprocess; subprocess.run({find_sandbox().command(inner, View())!r})"
    parent = subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, parent.stdout:
        assert parent.stdout.readline() == "up\n"
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 30
        while any(Path(f"/proc/{child}").exists() for child in children) or parent.stdout.read(1):
            assert time.monotonic() < deadline
            time.sleep(0.02)
