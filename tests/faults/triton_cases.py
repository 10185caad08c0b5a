"""Faults of the Triton server that a control plane supervises."""

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
from onnx import TensorProto, helper
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from controlplane.triton.statistics import parse_pending
from tests.faults.cases import Case, Trial
from tests.faults.clients import RefusedError
from tests.faults.planes import QUICK
from tests.faults.stage import MOVING, STEADY, Stage, meanwhile
from tests.support.api import onnx_scale

_SERVER = r"^readyz server|Server\w+ embedded|is (starting|unreachable|stopped)|triton-unavailable|triton-timeout"
_OTHERS = f"ExternalChange {STEADY}: "
_WAIT_SECONDS = 120.0
_TRY_TURNS = 300_000
_SLOW_SECONDS = 4 * float(QUICK["TRITON__UNLOAD_TIMEOUT_SECONDS"])


def unloadable_onnx_model() -> bytes:
    """Return a well-formed ONNX file with an operator that no runtime has."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
    node = helper.make_node("Mystery", ["x"], ["y"], domain="no.such.domain")
    graph = helper.make_graph([node], f"broken{time.monotonic_ns()}", [x], [y])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("no.such.domain", 1)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return data


@contextlib.contextmanager
def _excused(trial: Trial, *what: str) -> Iterator[None]:
    """Allow inference to fail during a block, because its server has a fault."""
    for one in what:
        trial.stage.record.excuse(one)
    try:
        yield
    finally:
        for one in what:
            trial.stage.record.expect(one)


def killed(trial: Trial) -> None:
    """Send SIGKILL to the server."""
    with _excused(trial, "triton"):
        os.kill(trial.stage.plane.triton_pid(), signal.SIGKILL)
        trial.sightings.wait(60)
        trial.heals(trial.stage.answers)


def hung(trial: Trial) -> None:
    """Send SIGSTOP to the server: it accepts connections and does not answer. A supervised server is restarted."""
    with _excused(trial, "triton"):
        server = psutil.Process(trial.stage.plane.triton_pid())
        server.suspend()
        trial.sightings.wait(60)
        trial.heals(trial.stage.answers)
        with contextlib.suppress(psutil.NoSuchProcess):
            server.resume()


def killed_in_a_loop(trial: Trial) -> None:
    """Send SIGKILL as soon as the server is back, five times."""
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
    """Send SIGKILL to a model's backend process: Triton continues to report READY."""
    with _excused(trial, STEADY):
        (pid,) = trial.stage.plane.backend_pids(STEADY)
        os.kill(pid, signal.SIGKILL)
        trial.sightings.wait(60)
        trial.heals(lambda: trial.stage.asker.ask(STEADY) is not None)


def load_fails(trial: Trial) -> None:
    """Deploy a version that Triton refuses to load; the active one continues to serve."""
    stage = trial.stage
    signature = {
        side: [{"name": name, "dtype": "FP32", "shape": [-1, 2]}] for side, name in (("inputs", "x"), ("outputs", "y"))
    }
    good = stage.work.publish("fragile")
    stage.work.settled(stage.work.deploy("fragile", good.version))
    broken = stage.work.publish(
        "fragile", unloadable_onnx_model(), golden=False, signature={**signature, "batched": True}, format="onnx"
    )
    trial.injected()
    try:
        stage.work.settled(stage.work.deploy("fragile", broken.version))
    except RefusedError:
        pass
    else:
        trial.problems.append("a version that cannot be loaded became Ready")
    if (answers := stage.asker.ask("fragile")) != good.version:
        trial.problems.append(f"version {good.version} answered, and {answers} after a failed load")
    trial.sightings.wait(60)
    trial.lifted()
    trial.heals(lambda: bool(stage.work.settled(stage.work.deploy("fragile", good.version))))
    stage.removes("fragile")


def load_hangs(trial: Trial) -> None:
    """Stop the new version's backend process during its start, so that its load does not return."""
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
        trial.injected()
        with meanwhile(stop):
            stage.work.deploy(MOVING, newest.version)
        if not stopped:
            trial.problems.append("no load was caught at its start")
        trial.sightings.wait(60)
        if stage.asker.ask(MOVING) is None and before is not None and stage.asker.ask(STEADY) is not None:
            trial.problems.append(f"version {before} answered before the hanging load and no longer does")
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        trial.lifted()
        trial.heals(lambda: stage.asker.ask(MOVING) == newest.version)


def slow_onnx_model() -> bytes:
    """Return a model that loops as often as its largest input and returns its input."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("v", "v_out")]
    turn, go, go_out = (
        helper.make_tensor_value_info(name, kind, [])
        for name, kind in (("turn", TensorProto.INT64), ("go", TensorProto.BOOL), ("go_out", TensorProto.BOOL))
    )
    nothing = helper.make_tensor("nothing", TensorProto.FLOAT, [1], [0.0])
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_out"]), helper.make_node("Add", ["v", "nothing"], ["v_out"])],
        "turn", [turn, go, value[0]], [go_out, value[1]], [nothing],
    )  # fmt: skip
    nodes = [
        helper.make_node("Abs", ["x"], ["size"]),
        helper.make_node("ReduceMax", ["size"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["turns"], to=TensorProto.INT64),
        helper.make_node("Loop", ["turns", "", "x"], ["y"], body=body),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy")
    model = helper.make_model(
        helper.make_graph(nodes, f"slow{time.monotonic_ns()}", [x], [y]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    data: bytes = model.SerializeToString()
    return data


def unload_is_slow(trial: Trial) -> None:
    """Undeploy a model while a request that takes longer than the unload's deadline is in flight.

    If the machine has become faster since the measurement, the request may end too early; then send a longer one.
    """
    for longer in (1, 2, 4, 8):
        _undeployed_in_flight(trial, longer)
        if trial.sightings.first is not None or trial.problems:
            return


def _undeployed_in_flight(trial: Trial, longer: int) -> None:
    stage = trial.stage
    published = stage.work.publish("slow", slow_onnx_model())
    stage.work.settled(stage.work.deploy("slow", published.version))
    _loops(stage, 1)  # the first request does not count
    began = time.monotonic()
    _loops(stage, _TRY_TURNS)
    turns = int(_TRY_TURNS * longer * _SLOW_SECONDS / (time.monotonic() - began))
    answers: list[int] = []
    with meanwhile(lambda: answers.append(_loops(stage, turns))):
        _until(lambda: bool(answers) or _pending(stage, "slow"))
        trial.injected()
        removed = stage.work.caller.call("DELETE", "/v1/deployments/slow")
        while not answers:
            held, state = _held(stage, "slow"), _state_of(stage, removed)
            if answers:
                break
            if held <= 0 or not stage.plane.backend_pids("slow"):
                trial.problems.append("its memory counts as free while a request is in flight")
                break
            if state == "succeeded":
                trial.problems.append("it is reported as unloaded while a request is in flight")
                break
            if not stage.answers():
                trial.problems.append("other models do not answer while one is unloaded")
                break
            time.sleep(0.1)
    if answers != [200]:
        trial.problems.append(f"a request that was in flight at the unload was answered {answers}")
    trial.lifted()
    trial.heals(lambda: _state_of(stage, removed) == "succeeded")
    if left := stage.plane.backend_pids("slow"):
        trial.problems.append(f"it is reported as unloaded while its process exists: {left}")
    _until(lambda: _held(stage, "slow") == 0)  # by the next reading; counting it longer is harmless
    stage.record.deployments.pop("slow")


def _loops(stage: Stage, turns: int) -> int:
    """Request this number of loops from the slow model; return the status of the answer."""
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [float(turns), 1.0]}]}
    return httpx.post(f"{stage.http_url}/v2/models/slow/infer", json=body, timeout=_WAIT_SECONDS).status_code


def _pending(stage: Stage, model: str) -> bool:
    (server,) = stage.work.caller.call("GET", "/v1/servers")["items"]
    page = httpx.get(server["metrics_url"], timeout=_WAIT_SECONDS).text
    return any(name == model for name, _ in parse_pending(page))


def _held(stage: Stage, model: str) -> int:
    return sum(
        device["held_bytes"] for one in _memory_of(stage) if one["model"] == model for device in one["footprint"]
    )


def _memory_of(stage: Stage) -> list[dict[str, Any]]:
    return [model for server in stage.work.caller.call("GET", "/v1/memory")["items"] for model in server["models"]]


def _state_of(stage: Stage, change: dict[str, Any]) -> str:
    return str(stage.work.caller.call("GET", f"/v1/operations/{change['operation_id']}")["state"])


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _WAIT_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("the expected state was not reached")
        time.sleep(0.05)


def unloaded_by_hand(trial: Trial) -> None:
    """Unload a deployed model as another client."""
    with _excused(trial, STEADY), InferenceServerClient(trial.stage.grpc_url) as other_client:
        other_client.unload_model(STEADY)
        trial.sightings.wait(60)
        trial.heals(lambda: trial.stage.asker.ask(STEADY) is not None)


def changed_by_hand(trial: Trial) -> None:
    """Load a deployed model as another client with a modified copy of its configuration that contains its digest."""
    with InferenceServerClient(trial.stage.grpc_url) as other_client, _excused(trial, STEADY):

        def batch() -> int:
            try:
                return int(other_client.get_model_config(STEADY, as_json=True)["config"]["max_batch_size"])
            except InferenceServerException:
                return 0  # it is not loaded at the moment

        ours = batch()
        config = other_client.get_model_config(STEADY, as_json=True)["config"]
        other_client.load_model(STEADY, config=json.dumps({**config, "max_batch_size": ours + 3}))
        trial.sightings.wait(60)
        trial.heals(lambda: batch() == ours and trial.stage.asker.ask(STEADY) is not None)


def stranger_loaded(trial: Trial) -> None:
    """Load an unmanaged model as another client: it is reported with its size and stays loaded."""
    name = f"stranger{time.monotonic_ns()}"
    with InferenceServerClient(trial.stage.grpc_url) as other_client:
        data = onnx_scale(3.0)
        other_client.load_model(name, config=json.dumps({"backend": "onnxruntime"}), files={"file:1/model.onnx": data})
        seen = trial.sightings.wait(60)
        reported = rf"unmanaged model {name}:1 is loaded \([\d.]+ [KMG]iB, not in the ledger\)"
        if seen is not None and not re.search(reported, seen.text):
            trial.problems.append(f"the report lacks its name or its size: {seen.text}")
        trial.lifted()
        trial.heals(trial.stage.answers)
        if not other_client.is_model_ready(name):
            trial.problems.append("an unmanaged model was unloaded")
        other_client.unload_model(name)


def triton_cases() -> list[Case]:
    """Return all Triton cases."""
    return [
        Case("Triton: SIGKILL", killed, _SERVER, long=4),
        Case("Triton: SIGSTOP, hung", hung, _SERVER, quick=0, long=2),
        Case("Triton: killed in a loop", killed_in_a_loop, _SERVER, quick=0, long=2),
        Case("Triton: backend process killed", backend_killed, r"Unhealthy|is not healthy|stopped answering", long=4),
        Case("Triton: a failing load", load_fails, r"no\.such\.domain|Mystery", long=4),
        Case(
            "Triton: a hanging load",
            load_hangs,
            r"did not answer in|deadline|hung|LoadStuck|never return",
            quick=0,
            long=3,
        ),
        Case("Triton: a slow unload", unload_is_slow, "UnloadFailed slow: .*is still on", long=4),
        Case("Triton: unloaded by another client", unloaded_by_hand, f"{_OTHERS}.*was unloaded", long=4),
        Case(
            "Triton: loaded differently by another client",
            changed_by_hand,
            rf"{_OTHERS}.*(another configuration|a load was started)",
            long=4,
        ),
        Case("Triton: an unmanaged model loaded", stranger_loaded, "UnmanagedModel embedded", long=4),
    ]
