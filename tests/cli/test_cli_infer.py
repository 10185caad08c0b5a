"""`infer` by both its ways: the gateway, and the API's route."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.cli.conftest import Cli

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def odd(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose tensors travel in other shapes and types than they have: a scalar, strings, half floats."""
    kinds = {"scalar": (TensorProto.FLOAT, []), "text": (TensorProto.STRING, [2]), "half": (TensorProto.FLOAT16, [2])}
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in kinds],
        "odd",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in kinds.items()],
        [helper.make_tensor_value_info(f"{name}_out", kind, shape) for name, (kind, shape) in kinds.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("odd") / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    cli.ok("push", "odd", path, "--deploy")
    return "odd"


def both(cli: Cli, *arguments: object, **more: Any) -> dict[str, Any]:
    """Ask both ways; return the answer, which has to be the same."""
    answers = {}
    for via in ("gateway", "api"):
        answer = cli.ok("infer", *arguments, "--via", via, "-o", "json", **more).json
        assert answer.pop("via") == via
        assert answer.pop("seconds") > 0
        answer.pop("server", None)
        answers[via] = answer
    assert answers["gateway"] == answers["api"]
    found: dict[str, Any] = answers["gateway"]
    return found


def test_by_itself_it_goes_to_the_front_door(cli: Cli, published: str) -> None:
    assert cli.ok("infer", published, "--sample", "-o", "json").json["via"] == "gateway"
    assert both(cli, published, "--sample")["model_version"] == "1"
    assert both(cli, published, "--sample", "--version", 1)["model_name"] == published


def test_every_kind_of_tensor_comes_back_the_same_way(cli: Cli, odd: str) -> None:
    request = json.dumps({"scalar": 1.5, "text": ["one", "zwölf"], "half": [0.1, 2]})
    outputs = {one["name"]: one for one in both(cli, odd, "-i", "-", stdin=request)["outputs"]}
    assert outputs["scalar_out"] == {"name": "scalar_out", "datatype": "FP32", "shape": [], "data": [1.5]}
    assert outputs["text_out"]["data"] == ["one", "zwölf"]
    assert outputs["half_out"]["datatype"] == "FP16"
    np.testing.assert_allclose(outputs["half_out"]["data"], [0.1, 2], atol=1e-3)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ('{"x": [[1, 2, 3]]}', 6),
        ('{"x": [["a", "b", "c", "d"]]}', 6),
        ('{"inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 4], "data": [1, 2, 3, 4]}]}', 6),
        ('{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 5], "data": [1, 2, 3, 4]}]}', 6),
        ('{"inputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}', 6),
    ],
)
def test_what_does_not_fit_is_told_in_the_same_words(cli: Cli, published: str, request_: str, code: int) -> None:
    said = {via: cli("infer", published, "-i", "-", "--via", via, stdin=request_) for via in ("gateway", "api", "auto")}
    assert {result.code for result in said.values()} == {code}
    assert len({result.err for result in said.values()}) == 1, said


def test_what_triton_refuses_is_its_word(cli: Cli, doubling: Path) -> None:
    cli.ok("push", "narrow", doubling)
    cli.ok("deploy", "narrow", "--max-batch-size", 2)
    request = json.dumps({"x": [[1, 1, 1, 1]] * 3})
    said = {via: cli("infer", "narrow", "-i", "-", "--via", via, stdin=request) for via in ("gateway", "api")}
    assert {result.code for result in said.values()} == {7}, said
    assert all("batch-size must be <= 2" in result.err for result in said.values()), said


def test_the_front_door_is_shown(cli: Cli, published: str) -> None:
    def route() -> dict[str, Any]:
        open_routes = {one["model"]: one for one in cli.ok("gateway", "-o", "json").json["models"]}
        found: dict[str, Any] = open_routes[published]
        return found

    before = route()
    cli.ok("infer", published, "--sample", "--via", "gateway")
    after = route()
    assert (after["way"], after["servers"]) == ("direct", ["embedded"])
    assert after["direct_requests"] > before["direct_requests"]
    told = cli.ok("gateway").out
    assert cli.ok("gateway", "-o", "json").json["http_url"] in told
    assert published in told
    assert "ready" in told


def test_a_model_on_demand_is_loaded_by_it(cli: Cli, doubling: Path) -> None:
    cli.ok("push", "seldom", doubling)
    cli.ok("deploy", "seldom", "--mode", "on-demand")
    answer = cli.ok("infer", "seldom", "--sample", "-o", "json").json
    assert (answer["via"], answer["model_version"]) == ("gateway", "1")


def test_what_would_not_answer_is_told_by_the_api(cli: Cli, doubling: Path) -> None:
    cli.ok("push", "asleep", doubling)
    cli.ok("deploy", "asleep")
    cli.ok("unload", "asleep")
    result = cli("infer", "asleep", "--sample")
    assert (result.code, "no version of 'asleep' is active now" in result.err) == (5, True), result
    assert cli("infer", "asleep", "--sample", "--version", 9).code == 3
    assert cli("infer", "nobody", "--sample").code == 3


def test_without_a_front_door_the_api_answers(fresh: Cli, doubling: Path) -> None:
    fresh.ok("up", "--detach", "--port", 0, "--no-gateway")
    fresh.ok("push", "steady", doubling, "--deploy")
    assert fresh.ok("infer", "steady", "--sample", "-o", "json").json["via"] == "api"
    shut = fresh("gateway")
    assert (shut.code, "this control plane has no gateway" in shut.err) == (3, True), shut
    result = fresh("infer", "steady", "--sample", "--via", "gateway")
    assert (result.code, "this control plane has no gateway; use --via api" in result.err) == (3, True), result
