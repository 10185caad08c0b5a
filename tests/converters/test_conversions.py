"""Every pair of formats with a real model: the result is inspected, run, and agrees with its original."""

import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import silero_vad

from controlplane.domain.manifest import Format
from controlplane.domain.samples import Sample, check_samples
from controlplane.domain.signature import DataType, Signature, TensorSpec
from controlplane.domain.tolerance import Tolerance
from controlplane.errors import (
    ConversionFailedError,
    InvalidArtifactError,
    InvalidInputError,
    ParityError,
    UnsupportedConversionError,
    UntrustedArtifactError,
)
from converters.jobs import ConvertJob
from converters.options import ConversionOptions
from converters.runtimes import OnnxRuntime, TorchScriptRuntime

SILERO = Path(silero_vad.__file__).parent / "data"
ONNX, TORCHSCRIPT = Format.ONNX, Format.TORCHSCRIPT

FEATURES = (TensorSpec(name="features", dtype="FP32", shape=(-1, 6)),)
IMAGE = (TensorSpec(name="image", dtype="FP32", shape=(-1, 3, 8, 8)),)
TOKENS = (
    TensorSpec(name="ids", dtype="INT64", shape=(-1, -1)),
    TensorSpec(name="mask", dtype="INT64", shape=(-1, -1)),
)
SILERO_STEP = (
    TensorSpec(name="x", dtype="FP32", shape=(-1, 576)),
    TensorSpec(name="state", dtype="FP32", shape=(2, -1, 128)),
)


@pytest.fixture
def convert(do, tmp_path):
    def run(source, target=ONNX, *, signature=None, samples=(), **options):
        chosen = ConversionOptions(target=target, **options)
        result = do(
            ConvertJob(source=source, options=chosen, output_dir=tmp_path / "out", signature=signature, samples=samples)
        )
        check_samples(result.samples, result.signature)
        return result

    return run


def outputs(result) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {spec.name: (spec.dtype.value, spec.shape) for spec in result.signature.outputs}


def arguments(result) -> dict[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TorchScriptRuntime(result.output_dir / "model.pt", None).arguments


def largest_error(result) -> float:
    return max(output.max_absolute_error for output in result.parity.outputs)


def test_a_module_becomes_onnx_with_its_batch_named(convert, models):
    result = convert(models.mlp_safetensors, factory="converter_nets:mlp", inputs=FEATURES, trust=True)
    assert outputs(result) == {"output": ("FP32", (-1, 3))}
    assert result.signature.batched
    assert result.attributes["dimensions"]["features"][0] == "batch"
    assert result.attributes["opset"] == 18
    assert result.converter == "pytorch-to-onnx"
    assert result.parameters["factory"] == "converter_nets:mlp"
    assert {"torch", "onnx", "onnxruntime", "python"} <= set(result.environment)
    assert {len(sample.inputs["features"]) for sample in result.samples} == {1, 2, 3}
    assert [path.name for path in result.output_dir.iterdir()] == ["model.onnx"]


def test_dict_outputs_and_two_dynamic_dimensions_survive(convert, models):
    result = convert(models.block_pt, factory="converter_nets:block", inputs=TOKENS, trust=True)
    assert outputs(result) == {"logits": ("FP32", (-1, -1, 3)), "pooled": ("FP32", (-1, 16))}
    longer = {name: np.ones((5, 31), np.int64) for name in ("ids", "mask")}
    assert OnnxRuntime(result.output_dir / "model.onnx").run(longer)["logits"].shape == (5, 31, 3)


def test_an_older_opset_is_reached_from_the_exporters_own(convert, models):
    result = convert(models.block_pt, factory="converter_nets:block", inputs=TOKENS, trust=True, opset=17)
    assert result.attributes["opset"] == 17


def test_fp16_keeps_inputs_and_outputs_and_halves_the_weights(convert, models):
    result = convert(models.conv_pt, factory="converter_nets:conv", inputs=IMAGE, trust=True, precision="fp16")
    assert outputs(result) == {"output": ("FP32", (-1, 4))}
    assert 0 < largest_error(result) < 1e-2
    model = onnx.load(result.output_dir / "model.onnx")
    assert onnx.TensorProto.FLOAT not in {tensor.data_type for tensor in model.graph.initializer}


def test_int8_is_within_its_tolerance_and_outside_that_of_floats(convert, models):
    options = {"factory": "converter_nets:mlp", "inputs": FEATURES, "trust": True, "precision": "int8"}
    result = convert(models.mlp_safetensors, **options)
    (parity,) = result.parity.outputs
    assert 1e-4 < parity.max_absolute_error <= parity.tolerance.absolute + parity.tolerance.relative
    assert result.tolerances["output"] == parity.tolerance


def test_a_given_tolerance_counts_and_parity_names_the_output(convert, models):
    with pytest.raises(ParityError, match=r"output 'scores': .* outside the tolerance"):
        convert(
            models.mlp_safetensors,
            factory="converter_nets:mlp",
            inputs=FEATURES,
            output_names=("scores",),
            trust=True,
            precision="int8",
            tolerances={"scores": Tolerance(absolute=1e-9, relative=0)},
        )


def test_a_module_becomes_torchscript_under_tritons_names(convert, models):
    result = convert(models.block_pt, TORCHSCRIPT, factory="converter_nets:block", inputs=TOKENS, trust=True)
    assert outputs(result) == {"logits__0": ("FP32", (-1, -1, 3)), "pooled__1": ("FP32", (-1, 16))}
    assert list(arguments(result)) == ["ids", "mask"]
    assert result.signature.batched


def test_half_precision_torchscript_keeps_float32_inputs_and_outputs(convert, models):
    result = convert(
        models.conv_pt, TORCHSCRIPT, factory="converter_nets:conv", inputs=IMAGE, trust=True, precision="fp16"
    )
    assert outputs(result) == {"OUTPUT__0": ("FP32", (-1, 4))}
    assert largest_error(result) > 0


def test_parity_detects_a_traced_branch_and_scripting_keeps_it(convert, models, tmp_path):
    import torch

    torch.save({}, tmp_path / "gate.pt")
    specs = (TensorSpec(name="x", dtype="FP32", shape=(-1, 4)),)
    options = {"factory": "converter_nets:gate", "inputs": specs, "trust": True, "sample_count": 8}
    with pytest.raises(ParityError, match="outputs of the converted model differ from those of the original"):
        convert(tmp_path / "gate.pt", TORCHSCRIPT, **options)
    (tmp_path / "out" / "model.pt").unlink()
    assert largest_error(convert(tmp_path / "gate.pt", TORCHSCRIPT, method="script", **options)) == 0


def test_an_export_program_needs_no_signature(convert, models):
    result = convert(models.mlp_pt2)
    assert result.signature.inputs == FEATURES
    assert result.signature.batched
    assert result.converter == "torch-export-to-onnx"


def test_an_export_program_becomes_torchscript(convert, models):
    result = convert(models.mlp_pt2, TORCHSCRIPT)
    assert outputs(result) == {"OUTPUT__0": ("FP32", (-1, 3))}
    assert result.signature.inputs == FEATURES


def test_torchscript_becomes_onnx(convert, models):
    result = convert(models.mlp_ts, inputs=FEATURES)
    assert outputs(result) == {"output": ("FP32", (-1, 3))}
    assert result.signature.batched


def test_scalar_arguments_of_torchscript_become_tensors(convert, models):
    specs = (TensorSpec(name="x", dtype="FP32", shape=(-1, 4)), TensorSpec(name="factor", dtype="INT64", shape=(1,)))
    result = convert(models.scaled_ts, TORCHSCRIPT, inputs=specs)
    assert set(arguments(result).values()) == {"Tensor"}
    assert list(outputs(result)) == ["OUTPUT__0", "OUTPUT__1"]
    assert not result.signature.batched


def test_a_part_of_silero_becomes_onnx_with_its_state_explicit(convert):
    result = convert(SILERO / "silero_vad.jit", inputs=SILERO_STEP, submodule="_model", output_names=("speech", "next"))
    assert outputs(result) == {"speech": ("FP32", (-1, 1)), "next": ("FP32", (2, -1, 128))}
    assert not result.signature.batched


def test_a_stateful_original_is_refused(convert):
    specs = (TensorSpec(name="x", dtype="FP32", shape=(1, 512)), TensorSpec(name="sr", dtype="INT64", shape=()))
    rate = tuple(
        Sample({"x": np.random.default_rng(n).standard_normal((1, 512), np.float32), "sr": np.array(16000)}, {})
        for n in range(2)
    )
    with pytest.raises(ConversionFailedError, match=r"in two runs .* state"):
        convert(SILERO / "silero_vad.jit", TORCHSCRIPT, inputs=specs, samples=rate)


def test_a_random_original_is_refused(convert, models):
    with pytest.raises(ConversionFailedError, match="random"):
        convert(models.noise_ts, inputs=(TensorSpec(name="x", dtype="FP32", shape=(-1, 4)),))


@pytest.mark.parametrize("options", [{"opset": 18}, {"precision": "fp16"}])
def test_silero_onnx_is_rewritten(convert, options):
    result = convert(SILERO / "silero_vad_16k_op15.onnx", **options)
    assert result.attributes["opset"] == options.get("opset", 15)
    assert [spec.name for spec in result.signature.inputs] == ["input", "state", "sr"]
    assert result.parity.generated
    assert result.parity.seed == 0


def test_external_data_is_read_when_onnx_is_rewritten(convert, models):
    result = convert(models.external, precision="int8", tolerances={"y": Tolerance(absolute=0.1, relative=0.1)})
    assert result.attributes["external_data"] == {}
    assert largest_error(result) > 0


def test_a_classifier_with_string_labels_becomes_onnx(convert, models):
    result = convert(models.iris_skops)
    assert outputs(result) == {"label": ("BYTES", (-1,)), "probabilities": ("FP32", (-1, 3))}
    assert result.signature.batched
    assert set(np.concatenate([s.outputs["label"] for s in result.samples])) <= {b"setosa", b"versicolor", b"virginica"}


@pytest.mark.parametrize(("model", "shape"), [("line_skops", (-1, 1)), ("scaler_skops", (-1, 4))])
def test_regressors_and_transformers_become_onnx(convert, models, model, shape):
    assert outputs(convert(getattr(models, model), output_names=("y",))) == {"y": ("FP32", shape)}


def test_given_samples_are_used_and_kept(convert, models):
    given = tuple(Sample({"features": np.full((size, 6), size, np.float32)}, {}) for size in (2, 4))
    result = convert(models.mlp_safetensors, TORCHSCRIPT, factory="converter_nets:mlp", samples=given, trust=True)
    assert not result.parity.generated
    assert result.parity.seed is None
    assert [len(sample.inputs["features"]) for sample in result.samples] == [2, 4]
    assert result.signature.inputs == FEATURES


def test_one_seed_gives_one_set_of_samples(convert, models, tmp_path):
    def inputs(seed: int):
        result = convert(models.line_skops, seed=seed)
        (tmp_path / "out" / "model.onnx").unlink()
        return [sample.inputs["X"].tobytes() for sample in result.samples]

    assert inputs(1) == inputs(1) != inputs(2)


def test_dynamic_axes_open_a_fixed_dimension(convert, models):
    fixed = (replace_shape(FEATURES[0], (2, 6)),)
    result = convert(
        models.mlp_safetensors, factory="converter_nets:mlp", inputs=fixed, dynamic_axes={"features": [0]}, trust=True
    )
    assert result.signature.inputs == FEATURES


def replace_shape(spec: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
    return spec.model_copy(update={"shape": shape})


def test_a_fixed_shape_stays_fixed(convert, models):
    fixed = (replace_shape(FEATURES[0], (2, 6)),)
    result = convert(models.mlp_safetensors, TORCHSCRIPT, factory="converter_nets:mlp", inputs=fixed, trust=True)
    assert not result.signature.batched
    assert outputs(result) == {"OUTPUT__0": ("FP32", (2, 3))}


def test_model_falsely_declared_batched_is_rejected(convert):
    with pytest.raises(ConversionFailedError, match="first dimension of state"):
        convert(SILERO / "silero_vad.jit", inputs=SILERO_STEP, submodule="_model", batched=True)


def test_a_pickled_module_is_converted_with_trust_alone(convert, models):
    with pytest.raises(UntrustedArtifactError, match="trust"):
        convert(models.whole_pt, TORCHSCRIPT, inputs=FEATURES)
    assert convert(models.whole_pt, TORCHSCRIPT, inputs=FEATURES, trust=True).signature.batched


def test_a_factory_is_not_imported_without_trust(convert, models, factories):
    (factories / "converter_side_effect.py").write_text(
        f"import pathlib\npathlib.Path({str(factories / 'ran')!r}).touch()\ndef make(): pass\n"
    )
    with pytest.raises(UntrustedArtifactError, match="converter_side_effect:make"):
        convert(models.mlp_safetensors, factory="converter_side_effect:make", inputs=FEATURES)
    assert not (factories / "ran").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factory": "no_such_package:net"}, "failed to import the factory"),
        ({"factory": "converter_nets:no_such"}, "failed to import the factory"),
        ({"factory": "converter_nets:not_a_module"}, "returned a int"),
        ({"factory": "converter_nets:conv"}, "do not fit"),
        ({"factory": "converter_nets:mlp", "factory_arguments": {"hidden": 5}}, "size mismatch"),
        ({"factory": "converter_nets:mlp", "dynamic_axes": {"other": [0]}}, "other"),
        ({"factory": "converter_nets:mlp", "output_names": ("a", "b")}, "2 output names"),
        ({"factory": "converter_nets:mlp", "submodule": "three"}, "one.*two"),
        ({}, "factory"),
    ],
)
def test_wrong_options_say_what_is_wrong(convert, models, options, message):
    with pytest.raises((InvalidInputError, ConversionFailedError), match=message):
        convert(models.mlp_safetensors, TORCHSCRIPT, inputs=FEATURES, trust=True, **options)


def test_undeclared_inputs_are_requested(convert, models):
    with pytest.raises(InvalidInputError, match="give a signature"):
        convert(models.mlp_ts)


def test_impossible_conversion_error_lists_possible_targets(convert, models):
    with pytest.raises(UnsupportedConversionError, match="possible targets: onnx") as caught:
        convert(models.iris_skops, TORCHSCRIPT)
    assert caught.value.details["possible"] == ["onnx"]
    with pytest.raises(UnsupportedConversionError, match="possible targets: onnx"):
        convert(models.mlp_onnx, TORCHSCRIPT)


def test_unknown_types_in_skops_are_refused_without_trust(convert, models, tmp_path):
    import converter_nets
    import skops.io

    skops.io.dump(converter_nets.Gate(), tmp_path / "odd.skops")
    with pytest.raises(UntrustedArtifactError, match=r"converter_nets\.Gate"):
        convert(tmp_path / "odd.skops")


def test_damaged_archive_gives_a_one_line_error(convert, models, tmp_path):
    with zipfile.ZipFile(models.mlp_ts) as old, zipfile.ZipFile(tmp_path / "bad.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, b"nonsense (" if "/code/" in name else old.read(name))
    with pytest.raises(InvalidArtifactError, match=r"bad\.pt") as caught:
        convert(tmp_path / "bad.pt", TORCHSCRIPT, inputs=FEATURES)
    assert "\n" not in caught.value.message


def test_options_that_contradict_are_refused():
    with pytest.raises(ValueError, match="int8"):
        ConversionOptions(target=TORCHSCRIPT, precision="int8")
    with pytest.raises(ValueError, match="opset"):
        ConversionOptions(target=TORCHSCRIPT, opset=17)
    with pytest.raises(ValueError, match="factory"):
        ConversionOptions(target=ONNX, factory="os.system('x')")


def test_the_signature_given_names_the_outputs(convert, models):
    signature = Signature(
        inputs=FEATURES, outputs=(TensorSpec(name="class", dtype=DataType.FP32, shape=(-1, 3)),), batched=True
    )
    result = convert(models.mlp_ts, signature=signature)
    assert outputs(result) == {"class": ("FP32", (-1, 3))}
    assert result.warnings == ()
