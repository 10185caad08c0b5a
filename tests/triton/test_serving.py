"""What the embedded backends serve, on a real server: types, shapes, batches, and the reasons of refusals."""

import ast
import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import silero_vad
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient

from controlplane.domain.comparison import compare
from controlplane.domain.deployment import DeploymentSettings, DynamicBatching, InstanceKind
from controlplane.domain.manifest import Format
from controlplane.domain.samples import Sample
from controlplane.domain.signature import Signature, TensorSpec
from controlplane.errors import InferenceError, LoadRefusedError
from converters.golden_samples import record
from converters.inspect import inspect_artifact
from converters.jobs import ConvertJob, RecordJob
from converters.options import ConversionOptions
from converters.runner import run_worker
from tests.cases import torchscript_inputs
from tests.support.triton_models import ModelFiles, load_torchscript, model_files, onnx_model, scale, spec, torchscript
from tests.support.triton_serving import Serving

pytestmark = pytest.mark.triton
SILERO = Path(silero_vad.__file__).parent / "data"


def rows(count: int, width: int = 3) -> NDArray[np.float32]:
    return np.arange(count * width, dtype=np.float32).reshape(count, width)


async def test_onnx_loads_infers_and_unloads_with_its_processes(serving: Serving, tmp_path: Path) -> None:
    name = await serving.serve(scale(tmp_path / "m.onnx", 2.0), DeploymentSettings(instance_count=2))
    assert len(serving.server.processes_of(name)) == 2
    assert serving.server.processes_of(name, 1) == serving.server.processes_of(name)
    assert serving.server.processes_of(name, 2) == []
    outputs, version = await serving.client.infer(name, {"x": rows(2)})
    np.testing.assert_array_equal(outputs["y"], rows(2) * 2)
    assert version == 1
    assert await serving.client.ready(name, 1)
    await serving.client.unload(name)
    assert serving.server.processes_of(name) == []
    assert not await serving.client.ready(name)
    with pytest.raises(InferenceError, match="not loaded"):
        await serving.client.infer(name, {"x": rows(1)})


async def test_outputs_have_the_order_of_the_configuration(serving: Serving, tmp_path: Path) -> None:
    """Triton passes the names as a set, whose order differs from process to process."""
    names = [f"y{number}" for number in range(8)]
    nodes = [helper.make_node("Identity", ["x"], [name]) for name in names]
    outputs = [spec(name, "FP32", -1, 3) for name in names]
    model = onnx_model(tmp_path / "m.onnx", nodes, [spec("x", "FP32", -1, 3)], outputs, batched=True)
    name = await serving.serve(model, DeploymentSettings(max_batch_size=4, dynamic_batching=DynamicBatching()))
    x = InferInput("x", [1, 3], "FP32")
    x.set_data_from_numpy(rows(1))
    async with InferenceServerClient(serving.server.grpc_url) as raw:
        for wanted in ([], ["y6", "y1", "y5"]):
            requested = [InferRequestedOutput(one) for one in wanted]
            answer = (await raw.infer(name, [x], outputs=requested or None)).get_response()
            assert [output.name for output in answer.outputs] == (sorted(wanted) or names)


class Affine(torch.nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor, gain: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        return (left - right) * gain, left.sum(dim=1)


@pytest.mark.parametrize("names", [("left", "right"), ("a__0", "b__1"), ("first", "second")])
async def test_torchscript_maps_inputs_by_name_by_position_or_in_order(
    serving: Serving, tmp_path: Path, names: tuple[str, str]
) -> None:
    signature = Signature(
        inputs=tuple(spec(name, "FP32", -1, 3) for name in names),
        outputs=(spec("OUTPUT__0", "FP32", -1, 3), spec("OUTPUT__1", "FP32", -1)),
        batched=True,
    )
    name = await serving.serve(torchscript(tmp_path / "m.pt", Affine(), signature))
    outputs, _ = await serving.client.infer(name, {names[1]: np.ones((2, 3), np.float32), names[0]: rows(2)})
    np.testing.assert_array_equal(outputs["OUTPUT__0"], rows(2) - 1)
    # One element per row: (N,) for the model and for us, (N, 1) on the wire.
    np.testing.assert_array_equal(outputs["OUTPUT__1"], rows(2).sum(axis=1))


async def test_only_requested_outputs_are_sent(serving: Serving, tmp_path: Path) -> None:
    signature = Signature(
        inputs=(spec("left", "FP32", -1, 3), spec("right", "FP32", -1, 3)),
        outputs=(spec("OUTPUT__0", "FP32", -1, 3), spec("OUTPUT__1", "FP32", -1)),
        batched=True,
    )
    name = await serving.serve(torchscript(tmp_path / "m.pt", Affine(), signature))
    outputs, _ = await serving.client.infer(name, {"left": rows(1), "right": rows(1)}, outputs=["OUTPUT__1"])
    assert list(outputs) == ["OUTPUT__1"]


async def test_strings_work_as_inputs_and_outputs(serving: Serving, tmp_path: Path) -> None:
    model = onnx_model(
        tmp_path / "m.onnx",
        [helper.make_node("Identity", ["text"], ["echo"])],
        [spec("text", "BYTES", -1, 2)],
        [spec("echo", "BYTES", -1, 2)],
        batched=True,
    )
    name = await serving.serve(model)
    sent = np.array([["grün", ""], ["x" * 100_000, "\x00tail\x00"]], dtype=object)
    outputs, _ = await serving.client.infer(name, {"text": sent})
    assert [item.decode() for item in outputs["echo"].reshape(-1)] == list(sent.reshape(-1))
    with pytest.raises(InferenceError, match="utf-8"):
        await serving.client.infer(name, {"text": np.array([[b"\xff", b""]], dtype=object)})


async def test_torchscript_strings_are_a_list(serving: Serving, tmp_path: Path) -> None:
    class Shout(torch.nn.Module):
        def forward(self, words: list[str]) -> list[str]:
            return [word.upper() for word in words]

    signature = Signature(inputs=(spec("words", "BYTES", -1),), outputs=(spec("OUT__0", "BYTES", -1),))
    name = await serving.serve(torchscript(tmp_path / "m.pt", Shout(), signature))
    outputs, _ = await serving.client.infer(name, {"words": np.array(["a", "b"], dtype=object)})
    assert list(outputs["OUT__0"]) == [b"A", b"B"]


async def test_scalars_have_rank_zero_in_model_and_client(serving: Serving, tmp_path: Path) -> None:
    model = onnx_model(
        tmp_path / "m.onnx",
        [helper.make_node("Mul", ["x", "by"], ["y"]), helper.make_node("Identity", ["by"], ["same"])],
        [spec("x", "INT64", -1), spec("by", "INT64")],
        [spec("y", "INT64", -1), spec("same", "INT64")],
    )
    name = await serving.serve(model)
    outputs, _ = await serving.client.infer(name, {"x": np.array([1, 2]), "by": np.array(3)})
    assert outputs["y"].tolist() == [3, 6]
    assert outputs["same"].shape == ()
    assert outputs["same"] == 3


async def test_one_label_per_row_is_one_dimensional(serving: Serving, tmp_path: Path) -> None:
    model = onnx_model(
        tmp_path / "m.onnx",
        [
            helper.make_node("ArgMax", ["x"], ["label"], axis=1, keepdims=0),
            helper.make_node("Neg", ["bias"], ["minus"]),
        ],
        [spec("x", "FP32", -1, 3), spec("bias", "FP32", -1)],
        [spec("label", "INT64", -1), spec("minus", "FP32", -1)],
        batched=True,
    )
    name = await serving.serve(model)
    outputs, _ = await serving.client.infer(name, {"x": rows(4), "bias": np.ones(4, np.float32)})
    assert outputs["label"].tolist() == [2, 2, 2, 2]
    assert outputs["minus"].tolist() == [-1, -1, -1, -1]


@pytest.mark.parametrize(
    "inputs",
    [(spec("b", "BYTES", -1),), (spec("b", "FP32", -1),), (spec("b", "INT64", -1), spec("x", "FP32", -1, -1))],
    ids=["texts", "numbers", "beside-a-matrix"],
)
async def test_request_with_zero_rows_does_not_kill_server(
    serving: Serving, tmp_path: Path, inputs: tuple[TensorSpec, ...]
) -> None:
    """With an empty reshape on an input the whole server crashes (Triton 2.51)."""
    outputs = tuple(tensor.model_copy(update={"name": f"{tensor.name}_out"}) for tensor in inputs)
    nodes = [helper.make_node("Identity", [tensor.name], [f"{tensor.name}_out"]) for tensor in inputs]
    name = await serving.serve(onnx_model(tmp_path / "m.onnx", nodes, inputs, outputs, batched=True))
    process = serving.server.pid
    for rows_sent in (0, 2):
        sent = {tensor.name: np.zeros((rows_sent,) * len(tensor.shape), tensor.dtype.numpy) for tensor in inputs}
        answer, _ = await serving.client.infer(name, sent)
        assert {key: array.shape for key, array in answer.items()} == {
            f"{key}_out": array.shape for key, array in sent.items()
        }
    assert serving.server.pid == process


@pytest.mark.parametrize("dtype", ["BOOL", "UINT8", "INT32", "INT64", "FP16", "FP64"])
async def test_every_type_keeps_its_values(serving: Serving, tmp_path: Path, dtype: str) -> None:
    model = onnx_model(
        tmp_path / "m.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [spec("x", dtype, -1, 2)],
        [spec("y", dtype, -1, 2)],
        batched=True,
    )
    name = await serving.serve(model)
    sent = np.array([[0, 1], [1, 0]]).astype(model.manifest.signature.inputs[0].dtype.numpy)  # type: ignore[union-attr]
    outputs, _ = await serving.client.infer(name, {"x": sent})
    np.testing.assert_array_equal(outputs["y"], sent)
    assert outputs["y"].dtype == sent.dtype


def torchscript_case(path: Path, case: str, signature: Signature) -> ModelFiles:
    return model_files(torchscript_inputs.write(path, case), Format.TORCHSCRIPT, signature)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("case", ["training-norm", "traced-training-norm"])
async def test_torchscript_runs_in_the_mode_in_which_it_was_saved(serving: Serving, tmp_path: Path, case: str) -> None:
    """Triton's own backend does not call eval(), so neither do we; `converters` records golden samples in that mode."""
    signature = Signature(inputs=(spec("x", "FP32", -1, 3),), outputs=(spec("OUTPUT__0", "FP32", -1, 3),))
    name = await serving.serve(torchscript_case(tmp_path, case, signature))
    outputs, _ = await serving.client.infer(name, {"x": torchscript_inputs.X})
    (recorded,) = record(
        RecordJob(source=tmp_path / f"{case}.pt", samples=(Sample({"x": torchscript_inputs.X}, {}),)), lambda *_: None
    ).samples
    np.testing.assert_allclose(outputs["OUTPUT__0"], recorded.outputs["OUTPUT__0"], rtol=1e-6)
    evaluated = load_torchscript(tmp_path / "training-norm.pt") if case == "training-norm" else None
    if evaluated is not None:
        assert not np.allclose(evaluated(torch.from_numpy(torchscript_inputs.X)).detach(), outputs["OUTPUT__0"])


@pytest.mark.parametrize(
    ("case", "names", "words"),
    [
        ("dict-output", ("logits__0", "mask__1"), "the model returns a dict"),
        ("list-output", ("OUTPUT__0", "OUTPUT__1"), "the model returns a list at position 1"),
        ("number-output", ("OUTPUT__0", "OUTPUT__1"), "the model returns a float at position 1"),
        ("scalar-output", ("OUTPUT__0",), "'OUTPUT__0' is a tensor without dimensions"),
    ],
)
async def test_torchscript_outputs_without_triton_type_are_refused(
    serving: Serving, tmp_path: Path, case: str, names: tuple[str, ...], words: str
) -> None:
    outputs = tuple(spec(name, "FP32", -1) for name in names)
    signature = Signature(inputs=(spec("x", "FP32", -1, 3),), outputs=outputs)
    name = await serving.serve(torchscript_case(tmp_path, case, signature))
    with pytest.raises(InferenceError, match=words):
        await serving.client.infer(name, {"x": torchscript_inputs.X})


async def test_torchscript_gets_its_inputs_as_a_dictionary(serving: Serving, tmp_path: Path) -> None:
    signature = Signature(
        inputs=(spec("right", "FP32", -1, 3), spec("left", "FP32", -1, 3)), outputs=(spec("OUTPUT__0", "FP32", -1, 3),)
    )
    name = await serving.serve(torchscript_case(tmp_path, "dict-argument", signature))
    outputs, _ = await serving.client.infer(name, {"left": rows(2), "right": rows(2) - 2})
    np.testing.assert_array_equal(outputs["OUTPUT__0"], np.full((2, 3), 2, np.float32))


async def test_torchscript_supports_bfloat16(serving: Serving, tmp_path: Path) -> None:
    class Double(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    signature = Signature(inputs=(spec("x", "BF16", -1, 2),), outputs=(spec("OUT__0", "BF16", -1, 2),), batched=True)
    name = await serving.serve(torchscript(tmp_path / "m.pt", Double(), signature))
    outputs, _ = await serving.client.infer(name, {"x": np.array([[1.5, -2.0]], np.float32)})
    assert outputs["OUT__0"].tolist() == [[3.0, -4.0]]


async def test_tensors_may_exceed_default_grpc_limit(serving: Serving, tmp_path: Path) -> None:
    name = await serving.serve(scale(tmp_path / "m.onnx", 2.0, width=3_000_000))
    sent = np.ones((1, 3_000_000), np.float32)
    outputs, _ = await serving.client.infer(name, {"x": sent})
    assert float(outputs["y"].sum()) == 6_000_000.0


async def test_concurrent_requests_are_batched_and_get_their_own_answers(serving: Serving, tmp_path: Path) -> None:
    settings = DeploymentSettings(
        max_batch_size=16, dynamic_batching=DynamicBatching(max_queue_delay_microseconds=20_000)
    )
    name = await serving.serve(scale(tmp_path / "m.onnx", 3.0), settings)
    inputs = [rows(1 + number % 3) + 100 * number for number in range(24)]
    answers = await asyncio.gather(*(serving.client.infer(name, {"x": array}) for array in inputs))
    for array, (outputs, _) in zip(inputs, answers, strict=True):
        np.testing.assert_array_equal(outputs["y"], array * 3)


async def test_bad_request_in_a_batch_fails_alone(serving: Serving, tmp_path: Path) -> None:
    """Index 9 is out of range for the model: that request fails, those batched with it do not."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [3], [10.0, 20.0, 30.0])
    model = onnx_model(
        tmp_path / "m.onnx",
        [helper.make_node("Gather", ["table", "index"], ["value"])],
        [spec("index", "INT64", -1, 1)],
        [spec("value", "FP32", -1, 1)],
        batched=True,
        initializers=[table],
    )
    settings = DeploymentSettings(dynamic_batching=DynamicBatching(max_queue_delay_microseconds=50_000))
    name = await serving.serve(model, settings)
    sent = [0, 9, 1, 2]
    answers = await asyncio.gather(
        *(serving.client.infer(name, {"index": np.array([[index]])}) for index in sent), return_exceptions=True
    )
    assert isinstance(answers[1], InferenceError)
    assert "out of data bounds" in str(answers[1])
    for position, value in ((0, 10.0), (2, 20.0), (3, 30.0)):
        answer = answers[position]
        assert not isinstance(answer, BaseException)
        assert answer[0]["value"].tolist() == [[value]]


async def test_wrong_input_is_reported_by_name(serving: Serving, tmp_path: Path) -> None:
    name = await serving.serve(scale(tmp_path / "m.onnx", 2.0))
    for inputs, message in (
        ({"z": rows(1)}, "has no input 'z'; its inputs: x"),
        ({"x": rows(1).astype(np.float64)}, "takes FP32, not float64"),
        ({"x": rows(1, 4)}, "unexpected shape"),
        ({"x": rows(9)}, "batch-size must be <= 8"),
        ({}, "expected 1 inputs"),
    ):
        with pytest.raises(InferenceError, match=message):
            await serving.client.infer(name, inputs)


async def test_a_load_fails_with_the_real_reason(serving: Serving, tmp_path: Path) -> None:
    good = scale(tmp_path / "m.onnx", 2.0)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(good.files["model.onnx"].read_bytes()[:-20])
    cases = [
        (model_files(broken, Format.ONNX, good.manifest.signature), "ONNX Runtime cannot open model.onnx"),
        (
            model_files(
                good.files["model.onnx"],
                Format.ONNX,
                Signature(inputs=(spec("x", "FP32", -1, 3),), outputs=(spec("z", "FP32", -1, 3),), batched=True),
            ),
            "the model has no output 'z'; its outputs: y",
        ),
        (
            model_files(
                good.files["model.onnx"],
                Format.ONNX,
                Signature(inputs=(spec("x", "INT64", -1, 3),), outputs=(spec("y", "FP32", -1, 3),), batched=True),
            ),
            "input 'x' is tensor\\(float\\) in the file, the configuration says TYPE_INT64",
        ),
        (
            model_files(
                broken,
                Format.TORCHSCRIPT,
                Signature(inputs=(spec("x", "FP32", -1, 3),), outputs=(spec("y__0", "FP32", -1, 3),), batched=True),
            ),
            "TorchScript cannot open model.pt",
        ),
    ]
    for model, reason in cases:
        with pytest.raises(LoadRefusedError, match=reason) as caught:
            await serving.serve(model)
        assert "\n" not in caught.value.message


async def test_invalid_thread_count_is_refused_and_valid_one_used(serving: Serving, tmp_path: Path) -> None:
    model = scale(tmp_path / "m.onnx", 2.0)
    with pytest.raises(LoadRefusedError, match="intra_op_thread_count must be a number of threads, not 'many'"):
        await serving.serve(model, DeploymentSettings(parameters={"intra_op_thread_count": "many"}))
    name = await serving.serve(
        model, DeploymentSettings(parameters={"intra_op_thread_count": "1"}, instance_kind=InstanceKind.CPU)
    )
    assert (await serving.client.infer(name, {"x": rows(1)}))[1] == 1


async def test_absent_gpu_is_refused(serving: Serving, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(LoadRefusedError, match="GPU"):
        await serving.serve(scale(tmp_path / "m.onnx", 2.0), DeploymentSettings(instance_kind=InstanceKind.GPU))


async def test_warm_up_runs_a_golden_sample_inside_the_load(serving: Serving, tmp_path: Path) -> None:
    """The model divides by its scalar input: zeros would be harmless, wrong bytes would not load."""
    model = onnx_model(
        tmp_path / "m.onnx",
        [helper.make_node("Div", ["x", "by"], ["y"])],
        [spec("x", "INT64", -1), spec("by", "INT64")],
        [spec("y", "INT64", -1)],
    )
    sample = Sample({"x": np.array([4, 6]), "by": np.array(2)}, {"y": np.array([2, 3])})
    name = await serving.serve(model, DeploymentSettings(warmup=True), [sample])
    config = await serving.client.model_config(name)
    assert [request["name"] for request in config["model_warmup"]] == ["golden"]
    assert (await serving.client.infer(name, sample.inputs))[0]["y"].tolist() == [2, 3]


async def test_warmup_works_with_batches_and_strings(serving: Serving, tmp_path: Path) -> None:
    model = onnx_model(
        tmp_path / "m.onnx",
        [helper.make_node("Identity", ["text"], ["echo"]), helper.make_node("Neg", ["bias"], ["minus"])],
        [spec("text", "BYTES", -1, 2), spec("bias", "FP32", -1)],
        [spec("echo", "BYTES", -1, 2), spec("minus", "FP32", -1)],
        batched=True,
    )
    inputs = {"text": np.array([["a", "bc"], ["d", ""]], dtype=object), "bias": np.ones(2, np.float32)}
    sample = Sample(inputs, {"echo": inputs["text"], "minus": -inputs["bias"]})
    name = await serving.serve(model, DeploymentSettings(warmup=True), [sample])
    assert (await serving.client.infer(name, inputs))[0]["minus"].tolist() == [-1, -1]


@pytest.mark.parametrize(
    "settings",
    [
        DeploymentSettings(max_batch_size=0),
        DeploymentSettings(max_batch_size=1, instance_kind=InstanceKind.CPU, instance_count=2),
        DeploymentSettings(
            max_batch_size=64,
            dynamic_batching=DynamicBatching(preferred_batch_size=(8, 64), max_queue_delay_microseconds=500),
            parameters={"inter_op_thread_count": "2", "execution_mode": "1", "session.intra_op.allow_spinning": "0"},
        ),
        DeploymentSettings(
            config_overrides={
                "optimization": {"priority": "PRIORITY_MAX", "input_pinned_memory": {"enable": False}},
                "dynamic_batching": {"priority_levels": "2", "default_priority_level": "1"},
                "instance_group": [{"kind": "KIND_CPU", "count": 1}, {"kind": "KIND_CPU", "count": 1}],
                "metric_tags": {"team": "vision"},
                "output": [{"name": "y", "label_filename": ""}],
            }
        ),
    ],
    ids=["no-batching", "instances", "batcher", "overrides"],
)
async def test_triton_accepts_generated_configurations(
    serving: Serving, tmp_path: Path, settings: DeploymentSettings
) -> None:
    """Both ways in: as the override of a load and, after a restart, as the config.pbtxt that lies there."""
    name = await serving.serve(scale(tmp_path / "m.onnx", 2.0), settings)
    assert (await serving.client.infer(name, {"x": rows(1)}))[0]["y"].tolist() == [[0, 2, 4]]
    running = await serving.client.model_config(name)
    await serving.client.unload(name)
    async with InferenceServerClient(serving.client.grpc_url) as raw:
        await raw.load_model(name)
    assert await serving.client.model_config(name) == running


async def test_running_configuration_can_be_read_back(serving: Serving, tmp_path: Path) -> None:
    model = scale(tmp_path / "m.onnx", 2.0)
    name = serving.name()
    config = serving.stage(name, 1, model)
    await serving.client.load(name, config)
    running = await serving.client.model_config(name)
    assert running["parameters"]["tcp_config_digest"] == config["parameters"]["tcp_config_digest"]
    assert running["input"][0]["dims"] == [3]


async def test_exporter_metadata_are_parameters_of_the_loaded_model(serving: Serving, tmp_path: Path) -> None:
    """As an Ultralytics export: their client reads the parameter `metadata`, and anyone else the single entries."""
    names = str({number: f"class {number} “é”" for number in range(1000)})
    noted = {"stride": "32", "task": "detect", "names": names, "FORCE_CPU_ONLY_INPUT_TENSORS": "no", "empty": ""}
    path = tmp_path / "m.onnx"
    model = scale(path, 2.0)
    proto = onnx.load(path)
    for key, value in noted.items():
        proto.metadata_props.add(key=key, value=value)
    onnx.save(proto, path)
    facts = inspect_artifact(path).attributes
    published = model_files(path, Format.ONNX, model.manifest.signature)
    name = await serving.serve(
        replace(published, manifest=published.manifest.model_copy(update={"attributes": facts})),
    )
    parameters = (await serving.client.model_config(name))["parameters"]
    assert {key: parameters[f"metadata.{key}"].get("string_value", "") for key in noted} == noted
    assert "FORCE_CPU_ONLY_INPUT_TENSORS" not in parameters
    read = ast.literal_eval(parameters["metadata"]["string_value"])
    assert read == noted
    assert ast.literal_eval(read["names"])[999] == "class 999 “é”"
    assert (await serving.client.infer(name, {"x": rows(1)}))[0]["y"].tolist() == [[0, 2, 4]]


@pytest.mark.parametrize("kind", [Format.XGBOOST, Format.LIGHTGBM])
async def test_converted_boosters_answer_as_their_library(serving: Serving, tmp_path: Path, kind: Format) -> None:
    """From the file through the worker process to Triton: batches, thresholds and missing values."""
    path = tmp_path / ("m.json" if kind is Format.XGBOOST else "m.txt")
    table = np.random.default_rng(0).standard_normal((100, 3)).astype(np.float32)
    target = (table.sum(axis=1) > 0).astype(int)
    if kind is Format.XGBOOST:
        import xgboost

        chosen = {"objective": "binary:logistic", "nthread": 1, "max_depth": 3}
        xgboost.train(chosen, xgboost.DMatrix(table, label=target), 5).save_model(path)
    else:
        import lightgbm

        data = lightgbm.Dataset(table.astype(np.float64), label=target)
        lightgbm.train({"objective": "binary", "num_threads": 1, "verbose": -1}, data, 5).save_model(path)
    job = ConvertJob(source=path, options=ConversionOptions(target=Format.ONNX), output_dir=tmp_path / "out")
    result = await asyncio.to_thread(run_worker, job)
    assert any(np.isnan(sample.inputs["X"]).any() for sample in result.samples)
    settings = DeploymentSettings(dynamic_batching=DynamicBatching())
    model = model_files(result.output_dir / "model.onnx", Format.ONNX, result.signature)
    name = await serving.serve(model, settings, result.samples)
    for sample in result.samples:
        answer, _ = await serving.client.infer(name, sample.inputs)
        assert all(comparison.agrees for comparison in compare(answer, sample.outputs, {}))


async def test_silero_vad_onnx_model_answers(serving: Serving) -> None:
    """A real model with a state and a rank-0 input, against onnxruntime itself."""
    signature = Signature(
        inputs=(spec("input", "FP32", -1, -1), spec("state", "FP32", 2, -1, 128), spec("sr", "INT64")),
        outputs=(spec("output", "FP32", -1, 1), spec("stateN", "FP32", -1, -1, -1)),
    )
    name = await serving.serve(model_files(SILERO / "silero_vad.onnx", Format.ONNX, signature))
    noise = np.random.default_rng(7).standard_normal((1, 576)).astype(np.float32)
    inputs: dict[str, NDArray[Any]] = {
        "input": noise,
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(16_000, dtype=np.int64),
    }
    outputs, _ = await serving.client.infer(name, inputs)
    session = onnxruntime.InferenceSession(SILERO / "silero_vad.onnx", providers=["CPUExecutionProvider"])
    expected = session.run(["output", "stateN"], inputs)
    np.testing.assert_allclose(outputs["output"], expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs["stateN"], expected[1], rtol=1e-4, atol=1e-5)


async def test_silero_vad_torchscript_model_answers(serving: Serving) -> None:
    """Its second argument is an int, which only the embedded backend can give: LibTorch passes tensors."""
    signature = Signature(
        inputs=(spec("x", "FP32", -1, -1), spec("sr", "INT64")),
        outputs=(spec("OUTPUT__0", "FP32", -1, 1),),
    )
    name = await serving.serve(model_files(SILERO / "silero_vad.jit", Format.TORCHSCRIPT, signature))
    noise = np.random.default_rng(7).standard_normal((1, 512)).astype(np.float32)
    outputs, _ = await serving.client.infer(name, {"x": noise, "sr": np.array(16_000)})
    module = load_torchscript(SILERO / "silero_vad.jit")
    expected = module(torch.from_numpy(noise), 16_000).detach().numpy()
    np.testing.assert_allclose(outputs["OUTPUT__0"], expected, rtol=1e-4, atol=1e-5)
