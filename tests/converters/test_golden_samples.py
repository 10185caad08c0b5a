"""Golden samples of artifacts that are served without conversion, and validation without publishing."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import silero_vad
from onnx import TensorProto, helper

from controlplane.domain.manifest import Format
from controlplane.domain.samples import Sample, check_samples
from controlplane.domain.signature import Signature, TensorSpec
from controlplane.errors import ConversionFailedError, InvalidInputError
from converters.jobs import RecordJob, ValidateJob
from converters.options import SamplingOptions

SILERO = Path(silero_vad.__file__).parent / "data"


def signature(inputs, outputs, *, batched=False) -> Signature:
    def specs(tensors):
        return tuple(TensorSpec(name=name, dtype=dtype, shape=shape) for name, dtype, shape in tensors)

    return Signature(inputs=specs(inputs), outputs=specs(outputs), batched=batched)


def one_node(path: Path, op: str, dtype: int, shape: list, **attributes) -> Path:
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, shape)],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_onnx_is_recorded_with_batches_of_several_sizes(do, models):
    result = do(RecordJob(source=models.mlp_onnx, sampling=SamplingOptions(seed=5, sample_count=4)))
    check_samples(result.samples, result.signature)
    assert [len(sample.inputs["x"]) for sample in result.samples] == [2, 1, 3, 2]
    assert result.generated
    again = do(RecordJob(source=models.mlp_onnx, sampling=SamplingOptions(seed=5, sample_count=4)))
    for left, right in zip(result.samples, again.samples, strict=True):
        np.testing.assert_array_equal(left.inputs["x"], right.inputs["x"])


def test_external_data_is_recorded(do, models):
    assert len(do(RecordJob(source=models.external)).samples) == 3


def test_strings_are_recorded_as_bytes(do, tmp_path):
    path = one_node(tmp_path / "s.onnx", "Identity", TensorProto.STRING, ["n"])
    (sample, *_) = do(RecordJob(source=path)).samples
    assert all(isinstance(element, bytes) for element in sample.outputs["y"])
    np.testing.assert_array_equal(sample.outputs["y"], sample.inputs["x"])


def test_a_random_model_gets_no_samples_and_a_warning(do, tmp_path):
    path = one_node(tmp_path / "r.onnx", "RandomUniformLike", TensorProto.FLOAT, [3])
    result = do(RecordJob(source=path))
    assert result.samples == ()
    assert "answers the same input differently in two runs" in result.warnings[0]
    report = do(ValidateJob(source=path))
    assert [check.name for check in report.checks if not check.ok] == ["deterministic"]


def test_torchscript_without_signature_or_samples_gets_none(do, models):
    result = do(RecordJob(source=models.mlp_ts))
    assert result.samples == ()
    assert result.signature is None
    assert "the file does not declare the types and shapes" in result.unservable


def test_torchscript_signature_is_inferred_from_samples(do, models):
    given = tuple(Sample({"features": np.ones((size, 6), np.float32)}, {}) for size in (1, 3))
    result = do(RecordJob(source=models.mlp_ts, samples=given))
    assert [str(spec) for spec in (*result.signature.inputs, *result.signature.outputs)] == [
        "features FP32[?,6]",
        "OUTPUT__0 FP32[?,3]",
    ]
    assert not result.signature.batched
    assert not result.generated
    check_samples(result.samples, result.signature)


@pytest.mark.parametrize("name", ["features", "INPUT__0"])
def test_torchscript_inputs_go_by_argument_or_by_index(do, models, name):
    said = signature([(name, "FP32", (-1, 6))], [("OUTPUT__0", "FP32", (-1, 3))], batched=True)
    result = do(RecordJob(source=models.mlp_ts, signature=said))
    check_samples(result.samples, said)
    assert result.warnings == ()


def test_silero_torchscript_is_reported_as_stateful_and_unservable(do):
    said = signature([("x", "FP32", (1, 512)), ("sr", "INT64", (1,))], [("OUTPUT__0", "FP32", (1, 1))])
    given = tuple(
        Sample({"x": np.random.default_rng(1).standard_normal((1, 512), np.float32), "sr": np.array([16000])}, {})
        for _ in range(2)
    )
    result = do(RecordJob(source=SILERO / "silero_vad.jit", signature=said, samples=given))
    assert result.inspection.format is Format.TORCHSCRIPT
    assert result.samples == ()
    assert "has state" in result.warnings[0]
    assert "sr (int)" in result.unservable


def test_given_samples_that_do_not_fit_are_refused(do, models):
    wrong = (Sample({"x": np.ones((2, 5), np.float32)}, {}),)
    with pytest.raises(InvalidInputError, match=r"sample 0: input 'x' is FP32\[2, 5\]"):
        do(RecordJob(source=models.mlp_onnx, samples=wrong))


def test_given_samples_that_the_model_refuses_are_an_error(do):
    source = SILERO / "silero_vad_16k_op15.onnx"
    short = {"input": np.ones((1, 3), np.float32), "state": np.ones((2, 1, 128), np.float32), "sr": np.array(16000)}
    with pytest.raises(ConversionFailedError, match="fails on the given sample 0"):
        do(RecordJob(source=source, samples=(Sample(short, {}),)))


def test_a_signature_that_the_answers_contradict_gets_no_samples(do, models):
    said = signature([("features", "FP32", (-1, 6))], [("OUTPUT__0", "FP32", (-1, 4))], batched=True)
    result = do(RecordJob(source=models.mlp_ts, signature=said))
    assert result.samples == ()
    assert "the signature requires OUTPUT__0 FP32[?,4]" in result.warnings[0]
    report = do(ValidateJob(source=models.mlp_ts, signature=said))
    assert [check.name for check in report.checks if not check.ok] == ["signature"]


def test_sample_shapes_are_used(do):
    sampling = SamplingOptions(sample_shapes={"input": (3, 576), "state": (2, 3, 128)}, sample_count=1)
    (sample,) = do(RecordJob(source=SILERO / "silero_vad_16k_op15.onnx", sampling=sampling)).samples
    assert sample.inputs["input"].shape == (3, 576)


def test_validation_stops_at_what_cannot_be_read(do, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\x08\x08nonsense")
    report = do(ValidateJob(source=tmp_path / "m.onnx"))
    assert not report.ok
    assert [(check.name, check.ok) for check in report.checks] == [("artifact", False)]
    assert report.format is None


def test_validation_of_a_source_format_checks_only_the_artifact(do, models):
    report = do(ValidateJob(source=models.mlp_safetensors))
    assert report.ok
    assert report.format is Format.PYTORCH
    assert [check.name for check in report.checks] == ["artifact"]


def test_validation_finds_a_model_that_its_runtime_cannot_load(do, tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Mystery", ["x"], ["y"], domain="example.unknown")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("example.unknown", 1)]
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    report = do(ValidateJob(source=tmp_path / "m.onnx"))
    assert [check.name for check in report.checks if not check.ok] == ["load"]
    assert "example.unknown" in report.checks[-1].message
