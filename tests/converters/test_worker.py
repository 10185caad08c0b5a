"""Real worker processes: a killed worker becomes an error message, and no files or processes are left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest
import silero_vad

from controlplane.domain.manifest import Format
from controlplane.errors import ConversionFailedError, InvalidArtifactError, ParityError
from controlplane.sandbox import find_sandbox
from converters import worker_output
from converters.jobs import ConvertJob, InspectJob, RecordJob, ValidateJob, WorkerEvent
from converters.options import ConversionOptions
from converters.runner import run_worker

SILERO = Path(silero_vad.__file__).parent / "data" / "silero_vad_16k_op15.onnx"

PLUGIN = '''
import os, shutil, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from controlplane.domain.manifest import Format
from converters.base import Converter


class Plugin(Converter):
    """Does what a file beside it says; takes the place of the built-in ONNX to ONNX converter."""

    name = "plugin"
    version = "9"
    source = Format.ONNX
    target = Format.ONNX

    def convert(self, original, request):
        todo = Path(__file__).with_name("todo").read_text()
        request.progress("convert", "about to " + todo)
        print("the plugin prints this")
        getattr(self, todo)(original, request)
        return ("done by a plugin",)

    def copy(self, original, request):
        shutil.copyfile(original.path, request.output)
        print(repr(dict(os.environ)))

    def session(self, original, request):
        self.copy(original, request)  # onnxruntime has been imported by now: it ran the original
        found = sorted(path.name for path in Path(os.environ["TMPDIR"]).iterdir())
        print("onnxruntime" in sys.modules, "and in the temporary folder:", found)

    def wrong(self, original, request):
        model = onnx.load(original.path)
        for tensor in model.graph.initializer:
            if tensor.name == "b":
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.5), "b"))
        onnx.save(model, request.output)

    def sleep(self, original, request):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        time.sleep(600)

    def eat(self, original, request):
        blocks = []
        while True:
            blocks.append(np.ones(4_000_000))
            time.sleep(0.01)

    def gulp(self, original, request):
        np.ones(2**36)

    def crash(self, original, request):
        print("last words", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)

    def leave(self, original, request):
        os._exit(3)

    def babble(self, original, request):
        for _ in range(200):
            print("x" * 10_000)
        self.copy(original, request)

    def forge(self, original, request):
        folder = Path(sys.argv[1])
        (folder / "result.json").write_text('{"result": {"format": "none of them"}}')
        os._exit(0)

    def lie(self, original, request):
        os.write(int(sys.argv[2]), b"no event\\n{}\\n[1]\\n" + b"y" * 200_000 + b"\\n")
        self.copy(original, request)
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Install a third party's converter: a distribution with an entry point, on the import path of workers."""
    site = tmp_path / "site"
    info = site / "converter_plugin-9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: converter-plugin\nVersion: 9\n")
    (info / "entry_points.txt").write_text("[triton_control_plane.converters]\nplugin = converter_plugin:Plugin\n")
    (site / "converter_plugin.py").write_text(PLUGIN)
    monkeypatch.setenv("PYTHONPATH", str(site))

    def todo(what: str) -> Path:
        (site / "todo").write_text(what)
        return site

    return todo


@pytest.fixture
def job(models, tmp_path) -> ConvertJob:
    return ConvertJob(
        source=models.mlp_onnx, options=ConversionOptions(target=Format.ONNX), output_dir=tmp_path / "out"
    )


@pytest.fixture
def work(tmp_path) -> Path:
    """The parent of the workers' folders; tests check that it is empty afterwards."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def asleep(parent: psutil.Process) -> tuple[int, int]:
    """Return the process ids (outside of the sandbox) of the sleeping worker and of its child."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in parent.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "import time; time.sleep(600)" in process.cmdline():
                    return process.ppid(), process.pid
        time.sleep(0.02)
    raise AssertionError("the worker did not get so far")


def gone(pid: int) -> bool:
    """Return whether a process ends within 10 s; a zombie has ended."""
    try:
        psutil.Process(pid).wait(timeout=10)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def test_onnxruntime_leaves_no_telemetry_session(plugin, job, work):
    plugin("session")
    assert "True and in the temporary folder: []" in run_worker(job, work_root=work).log


def test_a_plugin_converts_with_events_and_log(plugin, job, work, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-tell")
    plugin("copy")
    events: list[WorkerEvent] = []
    result = run_worker(job, on_event=events.append, work_root=work)
    assert (result.converter, result.converter_version) == ("plugin", "9")
    assert result.warnings == ("done by a plugin",)
    assert "the plugin prints this" in result.log
    assert result.peak_memory_bytes > 10_000_000
    assert [event.stage for event in events][-4:] == ["original", "convert", "check", "parity"]
    assert "about to copy" in [event.message for event in events]
    assert [path.name for path in (job.output_dir).iterdir()] == ["model.onnx"]
    assert list(work.iterdir()) == []
    # The worker runs code that comes with models, so it must not get its parent's credentials.
    assert "TMPDIR" in result.log
    assert "do-not-tell" not in result.log


def test_a_wrong_converter_is_found_by_parity(plugin, job):
    plugin("wrong")
    with pytest.raises(ParityError, match=r"output 'y': .* outside the tolerance") as caught:
        run_worker(job)
    (compared,) = caught.value.details["outputs"]
    assert compared["output"] == "y"
    assert compared["max_absolute_error"] == pytest.approx(0.5)


def test_the_time_limit_kills_the_worker_and_its_children(plugin, job, work):
    plugin("sleep")
    pids: list[int] = []

    def note(event: WorkerEvent) -> None:
        if event.stage == "convert":
            threading.Thread(target=lambda: pids.extend(asleep(psutil.Process()))).start()

    with pytest.raises(ConversionFailedError, match=r"was killed: it did not finish within 8 s .*stage convert"):
        run_worker(job, timeout_seconds=8, work_root=work, on_event=note)
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)
    assert list(work.iterdir()) == []


def test_the_memory_limit_kills_the_worker(plugin, job, work):
    plugin("eat")
    with pytest.raises(ConversionFailedError, match=r"used \d+ MiB of memory, and its limit is 400 MiB") as caught:
        run_worker(job, memory_bytes=400 * 1024**2, work_root=work)
    assert caught.value.details["peak_memory_bytes"] > 400 * 1024**2
    assert list(work.iterdir()) == []


def test_one_huge_allocation_is_refused_before_it_is_made(plugin, job):
    plugin("gulp")
    with pytest.raises(ConversionFailedError, match="reached its memory limit"):
        run_worker(job, memory_bytes=2 * 1024**3)


@pytest.mark.parametrize(
    ("todo", "message"),
    [
        ("crash", r"killed by SIGSEGV.*last words"),
        ("leave", "exited with status 3"),
        ("forge", "wrote an unreadable result"),
    ],
)
def test_a_worker_that_dies_is_an_error_with_the_end_of_its_log(plugin, job, todo, message):
    plugin(todo)
    with pytest.raises(ConversionFailedError, match=message):
        run_worker(job)


def test_a_worker_that_the_system_kills_is_an_error(plugin, job):
    plugin("sleep")
    pids: list[int] = []

    def kill_it(event: WorkerEvent) -> None:
        if event.stage == "convert":
            threading.Thread(target=kill_when_known).start()

    def kill_when_known() -> None:
        pids.extend(asleep(psutil.Process()))
        os.kill(pids[0], signal.SIGKILL)

    with pytest.raises(ConversionFailedError, match=r"killed by SIGKILL \(the system may be out of memory\)"):
        run_worker(job, on_event=kill_it)
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_a_worker_can_be_cancelled(plugin, job):
    plugin("sleep")
    cancel, pids = threading.Event(), list[int]()

    def stop(event: WorkerEvent) -> None:
        if event.stage == "convert":
            threading.Thread(target=stop_when_known).start()

    def stop_when_known() -> None:
        pids.extend(asleep(psutil.Process()))
        cancel.set()

    with pytest.raises(ConversionFailedError, match="was cancelled"):
        run_worker(job, on_event=stop, cancel=cancel)
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_the_log_is_bounded(plugin, job):
    plugin("babble")
    log = run_worker(job).log
    assert "bytes left out" in log
    assert len(log) <= worker_output.LOG_HEAD_BYTES + worker_output.LOG_TAIL_BYTES + 100


def test_log_lines_are_not_taken_for_events(plugin, job):
    plugin("lie")
    events: list[WorkerEvent] = []
    run_worker(job, on_event=events.append)
    assert {event.stage for event in events} == {"inspect", "load", "original", "convert", "check", "parity"}


def test_the_worker_dies_with_its_parent(plugin, models, tmp_path):
    """When the control plane is killed, no converter keeps running and using memory."""
    plugin("sleep")
    program = textwrap.dedent(
        f"""
        from pathlib import Path
        from controlplane.domain.manifest import Format
        from converters.jobs import ConvertJob
        from converters.options import ConversionOptions
        from converters.runner import run_worker
        run_worker(ConvertJob(source=Path({str(models.mlp_onnx)!r}), output_dir=Path({str(tmp_path / "out")!r}),
                              options=ConversionOptions(target=Format.ONNX)), work_root=Path({str(tmp_path)!r}))
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    try:
        worker, child = asleep(psutil.Process(parent.pid))
    finally:
        parent.kill()
        parent.wait()
    assert gone(worker)
    if find_sandbox().confines:
        assert gone(child), "the kernel ends all that runs in its namespaces"
    elif psutil.pid_exists(child):  # a converter's own children do not end with the parent
        os.kill(child, signal.SIGKILL)


def test_broken_plugin_is_named(plugin, job):
    site = plugin("copy")
    (site / "converter_plugin.py").write_text("raise ImportError('no such thing')")
    with pytest.raises(ConversionFailedError, match=r"failed to load the installed converter 'plugin': no such thing"):
        run_worker(job)


def test_errors_cross_the_process_with_their_kind_and_details(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"nonsense")
    with pytest.raises(InvalidArtifactError, match=r"m\.onnx"):
        run_worker(InspectJob(source=tmp_path / "m.onnx"))


def test_a_real_model_is_inspected_recorded_and_validated_in_a_worker():
    inspected = run_worker(InspectJob(source=SILERO))
    assert inspected.main_file == SILERO.name
    recorded = run_worker(RecordJob(source=SILERO))
    assert recorded.inspection == inspected
    assert len(recorded.samples) == 3
    assert recorded.samples[0].inputs["input"].shape[0] == recorded.samples[0].inputs["state"].shape[1]
    assert recorded.warnings == ()
    report = run_worker(ValidateJob(source=SILERO))
    assert report.ok
    assert [check.name for check in report.checks] == ["artifact", "load", "run", "signature", "deterministic"]
