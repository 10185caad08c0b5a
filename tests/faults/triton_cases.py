"""The Triton server that a control plane supervises."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import grpc
import psutil
from onnx import TensorProto, helper
from tritonclient.grpc import InferenceServerClient

from tests.faults.cases import Case, Trial
from tests.faults.clients import RefusedError
from tests.faults.stage import MOVING, STEADY, meanwhile

_SERVER = r"^readyz server|Server\w+ embedded|is (starting|unreachable|stopped)|triton-unavailable|triton-timeout"
_WAIT_SECONDS = 120.0


def onnx_that_does_not_load() -> bytes:
    """A well-formed ONNX file with an operator that no runtime has."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
    node = helper.make_node("Mystery", ["x"], ["y"], domain="nobody.knows")
    graph = helper.make_graph([node], f"broken{time.monotonic_ns()}", [x], [y])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nobody.knows", 1)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return data


@contextlib.contextmanager
def _excused(trial: Trial, *what: str) -> Iterator[None]:
    """Inference may fail for the length of a block, because its server was broken."""
    for one in what:
        trial.stage.record.excuse(one)
    try:
        yield
    finally:
        for one in what:
            trial.stage.record.expect(one)


def killed(trial: Trial) -> None:
    """SIGKILL to the server."""
    with _excused(trial, "triton"):
        os.kill(trial.stage.plane.triton_pid(), signal.SIGKILL)
        trial.sightings.wait(60)
        trial.heals(trial.stage.answers)


def hung(trial: Trial) -> None:
    """SIGSTOP to the server: it accepts connections and answers nothing. A supervised one is started anew."""
    with _excused(trial, "triton"):
        server = psutil.Process(trial.stage.plane.triton_pid())
        server.suspend()
        trial.sightings.wait(60)
        trial.heals(trial.stage.answers)
        with contextlib.suppress(psutil.NoSuchProcess):
            server.resume()


def killed_in_a_loop(trial: Trial) -> None:
    """SIGKILL as soon as it is back, five times."""
    plane = trial.stage.plane
    with _excused(trial, "triton"):
        last = 0
        for _ in range(5):
            pid = last
            end = time.monotonic() + _WAIT_SECONDS
            while pid == last and time.monotonic() < end:
                pid = plane.find_triton() or last
                time.sleep(0.02)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            last = pid
        trial.lifted()
        trial.heals(trial.stage.answers)


def backend_killed(trial: Trial) -> None:
    """SIGKILL to a model's backend process: Triton goes on saying READY."""
    with _excused(trial, STEADY):
        (pid,) = trial.stage.plane.backend_pids(STEADY)
        os.kill(pid, signal.SIGKILL)
        trial.sightings.wait(60)
        trial.heals(lambda: trial.stage.asker.ask(STEADY) is not None)


def load_fails(trial: Trial) -> None:
    """A version that Triton refuses to load; the one that answers goes on."""
    stage = trial.stage
    signature = {
        side: [{"name": name, "dtype": "FP32", "shape": [-1, 2]}] for side, name in (("inputs", "x"), ("outputs", "y"))
    }
    good = stage.work.publish("fragile")
    stage.work.settled(stage.work.deploy("fragile", good.version))
    broken = stage.work.publish(
        "fragile", onnx_that_does_not_load(), golden=False, signature={**signature, "batched": True}, format="onnx"
    )
    try:
        stage.work.settled(stage.work.deploy("fragile", broken.version))
    except RefusedError:
        pass
    else:
        trial.problems.append("a version that cannot be loaded passed for Ready")
    if (answers := stage.asker.ask("fragile")) != good.version:
        trial.problems.append(f"version {good.version} answered, and {answers} after a load that failed")
    trial.sightings.wait(60)
    trial.lifted()
    trial.heals(lambda: bool(stage.work.settled(stage.work.deploy("fragile", good.version))))
    stage.removes("fragile")


def load_hangs(trial: Trial) -> None:
    """The new version's backend process is stopped while it starts, so its load does not return."""
    stage = trial.stage
    before = stage.asker.ask(MOVING)
    others = set(stage.plane.backend_pids(MOVING))
    stopped: list[psutil.Process] = []

    def stop() -> None:
        end = time.monotonic() + _WAIT_SECONDS
        while not stopped and time.monotonic() < end:
            new = {*stage.plane.backend_pids(MOVING), *stage.plane.backend_pids(f"{MOVING}~candidate")} - others
            for pid in new:
                with contextlib.suppress(psutil.NoSuchProcess):
                    stopped.append(psutil.Process(pid))
                    stopped[-1].suspend()
            time.sleep(0.002)

    with stage.deployer_off(), _excused(trial, "triton"):
        newest = stage.work.publish(MOVING)
        with meanwhile(stop):
            stage.work.deploy(MOVING, newest.version)
        if not stopped:
            trial.problems.append("no load was caught at its start")
        trial.sightings.wait(60)
        if stage.asker.ask(MOVING) is None and before is not None and stage.asker.ask(STEADY) is not None:
            trial.problems.append(f"version {before} answered before the load that hangs, and does not now")
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        trial.lifted()
        trial.heals(lambda: stage.asker.ask(MOVING) == newest.version)


def unload_is_slow(trial: Trial) -> None:
    """A model's backend process is stopped for three seconds while it shall end."""
    stage = trial.stage
    old = stage.work.publish("slow")
    stage.work.settled(stage.work.deploy("slow", old.version))
    (pid,) = stage.plane.backend_pids("slow")
    process = psutil.Process(pid)
    process.suspend()
    removed = stage.work.caller.call("DELETE", "/v1/deployments/slow")
    time.sleep(3)
    if not stage.answers():
        trial.problems.append("others do not answer while one is unloaded")
    with contextlib.suppress(psutil.NoSuchProcess):
        process.resume()  # Triton's own patience may have ended first
    trial.lifted()
    trial.heals(lambda: bool(stage.work.settled(removed)))
    if stage.plane.backend_pids("slow"):
        trial.problems.append("it says unloaded, and its process is there")
    stage.record.deployments.pop("slow")


def unloaded_by_hand(trial: Trial) -> None:
    """Somebody else unloads a deployed model."""
    with _excused(trial, STEADY), InferenceServerClient(trial.stage.grpc_url) as somebody:
        somebody.unload_model(STEADY)
        trial.sightings.wait(60)
        trial.heals(lambda: trial.stage.asker.ask(STEADY) is not None)


def loaded_by_hand(trial: Trial) -> None:
    """Somebody else loads a deployed model with another configuration, again and again for a while."""
    with InferenceServerClient(trial.stage.grpc_url) as somebody, _excused(trial, STEADY):
        ours = somebody.get_model_config(STEADY, as_json=True)["config"]["parameters"]
        for _ in range(3):
            with contextlib.suppress(grpc.RpcError, Exception):
                somebody.load_model(STEADY)
            time.sleep(0.2)
        trial.lifted()

        def put_right() -> bool:
            config = somebody.get_model_config(STEADY, as_json=True)["config"]
            return config["parameters"] == ours and trial.stage.asker.ask(STEADY) is not None

        trial.heals(put_right)


def triton_cases() -> list[Case]:
    """All of them."""
    return [
        Case("Triton: SIGKILL", killed, _SERVER, long=4),
        Case("Triton: SIGSTOP, hung", hung, _SERVER, quick=0, long=2),
        Case("Triton: killed in a loop", killed_in_a_loop, _SERVER, quick=0, long=2),
        Case("Triton: backend process killed", backend_killed, r"Unhealthy|is not healthy|stopped answering", long=4),
        Case("Triton: a load that fails", load_fails, r"nobody\.knows|Mystery", long=4),
        Case(
            "Triton: a load that hangs",
            load_hangs,
            r"did not answer in|deadline|hung|LoadStuck|never return",
            quick=0,
            long=3,
        ),
        Case("Triton: a slow unload", unload_is_slow, "Unloaded slow", long=4),
        Case("Triton: unloaded by somebody else", unloaded_by_hand, rf"{STEADY}", long=4),
        Case("Triton: loaded by somebody else", loaded_by_hand, long=4),
    ]
