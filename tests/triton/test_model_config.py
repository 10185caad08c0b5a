"""Configurations: right for any signature and settings, and every contradiction refused by the field's name."""

import ast
import json
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from controlplane.domain.deployment import DeploymentSettings, DynamicBatching, InstanceKind
from controlplane.domain.manifest import FileEntry, Format, Manifest
from controlplane.domain.samples import Sample
from controlplane.domain.signature import DataType, Signature, TensorSpec
from controlplane.errors import InvalidConfigError
from controlplane.triton.config_json import json_to_message, message_to_json
from controlplane.triton.model_config import (
    batching_obstacle,
    build_config,
    config_digest,
    data_type_of,
    to_pbtxt,
    triton_type,
)
from controlplane.triton.warmup import warmup_files
from controlplane.triton.wire import deserialise, serialise


def spec(name: str, dtype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, dtype=DataType(dtype), shape=shape)


def manifest(signature: Signature | None, kind: Format = Format.ONNX) -> Manifest:
    entry = FileEntry(path=kind.file_name or "file", sha256="0" * 64, size_bytes=1)
    return Manifest(format=kind, files=(entry,), signature=signature)


BATCHED = Signature(inputs=(spec("x", "FP32", -1, 3),), outputs=(spec("y", "FP32", -1, -1),), batched=True)
SINGLE = Signature(inputs=(spec("x", "FP32", 2, -1), spec("sr", "INT64")), outputs=(spec("y", "BYTES", -1),))


def build(signature: Signature = BATCHED, versions: tuple[int, ...] = (1,), **settings: Any) -> dict[str, Any]:
    return build_config("m", manifest(signature), DeploymentSettings(**settings), versions)


def test_batched_signature_omits_batch_dimension() -> None:
    config = build()
    assert config["backend"] == "onnxruntime"
    assert config["default_model_filename"] == "model.onnx"
    assert config["max_batch_size"] == 8
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}]
    assert config["output"] == [{"name": "y", "data_type": "TYPE_FP32", "dims": [-1]}]
    assert "dynamic_batching" not in config


def test_max_batch_size_0_keeps_batch_dimension_in_shape() -> None:
    config = build(max_batch_size=0)
    assert "max_batch_size" not in config
    assert config["input"][0]["dims"] == [-1, 3]


def test_strings_and_scalars_of_unbatched_model() -> None:
    config = build(SINGLE)
    assert config["input"][1] == {"name": "sr", "data_type": "TYPE_INT64", "dims": [1]}
    assert config["parameters"]["tcp_scalars"] == {"string_value": "sr"}
    assert config["output"][0]["data_type"] == "TYPE_STRING"


LABELLED = Signature(inputs=(spec("x", "FP32", -1, 3),), outputs=(spec("y", "INT64", -1),), batched=True)
TEXTS = Signature(inputs=(spec("text", "BYTES", -1),), outputs=(spec("y", "INT64", -1),), batched=True)


def test_output_with_one_element_per_row_is_reshaped() -> None:
    config = build(LABELLED)
    assert config["output"] == [{"name": "y", "data_type": "TYPE_INT64", "dims": [1], "reshape": {}}]
    assert "reshape { }" in " ".join(to_pbtxt(config).split())


def test_input_with_one_element_per_row_disables_batching() -> None:
    config = build(TEXTS)
    assert "max_batch_size" not in config
    assert config["input"] == [{"name": "text", "data_type": "TYPE_STRING", "dims": [-1]}]
    assert config["output"] == [{"name": "y", "data_type": "TYPE_INT64", "dims": [-1]}]
    assert build(TEXTS, max_batch_size=0)["input"] == config["input"]


def test_empty_reshape_has_two_equivalent_forms() -> None:
    signature = LABELLED
    forms: tuple[dict[str, list[int]], ...] = ({}, {"shape": []})
    for written in forms:
        config = build(signature, config_overrides={"output": [{"name": "y", "dims": ["1"], "reshape": written}]})
        assert to_pbtxt(config) == to_pbtxt(build(signature))


def test_settings_set_instances_batching_versions_and_parameters() -> None:
    config = build(
        versions=(7, 2, 7),
        instance_count=3,
        instance_kind=InstanceKind.GPU,
        gpus=(0, 1),
        max_batch_size=16,
        dynamic_batching=DynamicBatching(preferred_batch_size=(4, 16), max_queue_delay_microseconds=100),
        parameters={"intra_op_thread_count": "2"},
    )
    assert config["version_policy"] == {"specific": {"versions": [2, 7]}}
    assert config["instance_group"] == [{"count": 3, "kind": "KIND_GPU", "gpus": [0, 1]}]
    assert config["dynamic_batching"] == {"preferred_batch_size": [4, 16], "max_queue_delay_microseconds": 100}
    assert config["parameters"]["intra_op_thread_count"] == {"string_value": "2"}


def test_file_metadata_become_parameters_that_no_backend_reads() -> None:
    noted = {"names": "{0: 'cat'}", "EXECUTION_ENV_PATH": "/tmp/x", "session.intra_op.allow_spinning": "1"}
    published = manifest(BATCHED).model_copy(update={"attributes": {"metadata": noted}})
    config = build_config("m", published, DeploymentSettings(parameters={"metadata.names": "mine"}), [1])
    values = {name: value["string_value"] for name, value in config["parameters"].items()}
    assert values.pop("metadata.names") == "mine"
    assert values.pop("metadata.EXECUTION_ENV_PATH") == "/tmp/x"
    assert values.pop("metadata.session.intra_op.allow_spinning") == "1"
    assert json.loads(values.pop("metadata")) == noted
    assert set(values) == {"tcp_config_digest"}
    # Values set in the deployment take precedence, and a file cannot set a parameter of the control plane.
    for key in ("parameters", "config_overrides"):
        own: dict[str, Any] = {"metadata": "mine"}
        given = {"parameters": {"metadata": {"string_value": "mine"}}} if key == "config_overrides" else own
        kept = build_config("m", published, DeploymentSettings(**{key: given}), [1])["parameters"]
        assert kept["metadata"] == {"string_value": "mine"}
    hostile = manifest(BATCHED).model_copy(update={"attributes": {"metadata": {"tcp_config_digest": "0" * 64}}})
    config = build_config("m", hostile, DeploymentSettings(), [1])
    assert config["parameters"]["tcp_config_digest"]["string_value"] == config_digest(config)
    unusable: tuple[Any, ...] = (None, [], "text", {"names": 3}, {"names": None})
    for damaged in unusable:
        odd = manifest(BATCHED).model_copy(update={"attributes": {"metadata": damaged}})
        assert set(build_config("m", odd, DeploymentSettings(), [1])["parameters"]) == {"tcp_config_digest"}


@given(st.dictionaries(st.text(min_size=1), st.text(), min_size=1, max_size=5))
def test_metadata_document_is_json_and_python_literal(noted: dict[str, str]) -> None:
    published = manifest(BATCHED).model_copy(update={"attributes": {"metadata": noted}})
    document = build_config("m", published, DeploymentSettings(), [1])["parameters"]["metadata"]["string_value"]
    assert json.loads(document) == ast.literal_eval(document) == noted


def test_metadata_document_is_omitted_when_it_is_too_large() -> None:
    published = manifest(BATCHED).model_copy(update={"attributes": {"metadata": {"a": "\x01" * 40_000}}})
    parameters = build_config("m", published, DeploymentSettings(), [1])["parameters"]
    assert set(parameters) == {"metadata.a", "tcp_config_digest"}


def test_default_batch_size_fits_golden_samples() -> None:
    sample = Sample({"x": np.zeros((20, 3), np.float32)}, {})
    assert build_config("m", manifest(BATCHED), DeploymentSettings(), [1], samples=sample)["max_batch_size"] == 20
    config = build_config("m", manifest(BATCHED), DeploymentSettings(max_batch_size=4), [1], samples=[sample])
    assert config["max_batch_size"] == 4


def test_warmup_requests_name_their_data_files() -> None:
    inputs = {"x": np.ones((2, 5), np.float32), "sr": np.array(16_000)}
    sample = Sample(inputs, {})
    config = build_config("m", manifest(SINGLE), DeploymentSettings(warmup=True), [1], samples=sample)
    files = warmup_files(SINGLE, sample, config)
    (request,) = config["model_warmup"]
    assert request["inputs"]["x"]["dims"] == [2, 5]
    assert request["inputs"]["sr"]["dims"] == [1]
    assert files[request["inputs"]["x"]["input_data_file"]] == inputs["x"].tobytes()
    assert files[request["inputs"]["sr"]["input_data_file"]] == (16_000).to_bytes(8, "little")
    assert warmup_files(SINGLE, sample, build(SINGLE)) == {}


def test_overrides_are_merged() -> None:
    config = build(
        parameters={"a": "1"},
        config_overrides={
            "input": [{"name": "x", "optional": True}],
            "optimization": {"execution_accelerators": {"gpu_execution_accelerator": [{"name": "tensorrt"}]}},
            "parameters": {"b": {"string_value": "2"}},
            "instanceGroup": [{"kind": "KIND_CPU", "count": 2}],
            "max_batch_size": 8,
        },
    )
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3], "optional": True}]
    assert set(config["parameters"]) == {"a", "b", "tcp_config_digest"}
    assert config["instance_group"] == [{"kind": "KIND_CPU", "count": 2}]
    assert config["optimization"]["execution_accelerators"]["gpu_execution_accelerator"] == [{"name": "tensorrt"}]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"max_bach_size": 3}, r"config_overrides\.max_bach_size is not a field of Triton's ModelConfig"),
        ({"input": [{"name": "x", "dim": [3]}]}, r"config_overrides\.input\[0\]\.dim is not a field"),
        ({"optimization": {"cuda": {"graph": 1}}}, r"config_overrides\.optimization\.cuda\.graph is not a field"),
        ({"parameters": {"a": "text"}}, r"config_overrides\.parameters\.a must be an object"),
        ({"input": {"name": "x"}}, r"config_overrides\.input must be a list"),
        ({"optimization": {"eager_batching": "maybe"}}, "eager_batching"),
        ({"optimization": None}, "is null"),
        ({"maxBatchSize": 8, "max_batch_size": 8}, "given twice"),
        ({"name": "other"}, r"config_overrides\.name cannot be set: the control plane determines it"),
        ({"backend": "python"}, r"config_overrides\.backend cannot be set: the control plane determines it"),
        ({"platform": "onnxruntime_onnx"}, "platform cannot be set: the control plane determines it"),
        ({"version_policy": {"all": {}}}, "version_policy cannot be set: the control plane determines it"),
        (
            {"versionPolicy": {"latest": {"num_versions": 2}}},
            "version_policy cannot be set: the control plane determines it",
        ),
        (
            {"default_model_filename": "../x.onnx"},
            "default_model_filename cannot be set: the control plane determines it",
        ),
        ({"max_batch_size": 4}, "max_batch_size is 4, but the settings and the signature give 8"),
        ({"max_batch_size": 0}, "max_batch_size is 0"),
        ({"input": [{"name": "x", "dims": [4]}]}, r"input 'x': dims is \[4\], the signature says \[3\]"),
        ({"output": [{"name": "y", "data_type": "TYPE_FP16"}]}, "output 'y': data_type is TYPE_FP16"),
        ({"input": [{"name": "z"}]}, "has no input 'z', only x"),
        ({"input": [{"optional": True}]}, "has no input None"),
        ({"input": [{"name": "x", "reshape": {"shape": [1, 3]}}]}, "reshape"),
        ({"parameters": {"tcp_config_digest": {"string_value": ""}}}, "are reserved for the control plane"),
        ({"model_transaction_policy": {"decoupled": True}}, "decoupled"),
        ({"ensemble_scheduling": {"step": []}}, "ensemble_scheduling cannot be set: the control plane determines it"),
    ],
)
def test_contradictory_overrides_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        build(config_overrides=overrides)


@pytest.mark.parametrize(
    ("signature", "settings", "message"),
    [
        (SINGLE, {"max_batch_size": 4}, "no batch dimension; use 0"),
        (SINGLE, {"dynamic_batching": DynamicBatching()}, "the model's signature has no batch dimension; remove it"),
        (SINGLE, {"config_overrides": {"dynamic_batching": {}}}, "needs a max_batch_size above 0"),
        (BATCHED, {"dynamic_batching": DynamicBatching(preferred_batch_size=(9,))}, "preferred_batch_size 9"),
        (BATCHED, {"parameters": {"tcp_scalars": "x"}}, "are reserved for the control plane"),
        (BATCHED, {"warmup": True, "config_overrides": {"model_warmup": []}}, "contradicts warmup"),
        (
            BATCHED,
            {"dynamic_batching": DynamicBatching(), "config_overrides": {"sequence_batching": {}}},
            "Triton has one scheduler",
        ),
        (
            Signature(inputs=(spec("x", "FP32", 0),), outputs=(spec("y", "FP32", 1),)),
            {},
            "does not support dimensions of size 0",
        ),
        (TEXTS, {"max_batch_size": 16}, "max_batch_size is 16, but input 'text' has one element per row"),
        (TEXTS, {"dynamic_batching": DynamicBatching()}, "dynamic_batching cannot be used: input 'text' has one"),
    ],
)
def test_settings_that_contradict_the_signature_are_refused(
    signature: Signature, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidConfigError, match=message):
        build(signature, **settings)


def test_unservable_version_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="convert it"):
        build_config("m", manifest(BATCHED, Format.SKLEARN), DeploymentSettings(), [1])
    with pytest.raises(InvalidConfigError, match="no signature"):
        build_config("m", manifest(None), DeploymentSettings(), [1])
    unservable = manifest(BATCHED).model_copy(update={"unservable": "output 'y' is a sequence"})
    with pytest.raises(InvalidConfigError, match="cannot serve this version: output 'y' is a sequence"):
        build_config("m", unservable, DeploymentSettings(), [1])
    mixed = manifest(BATCHED).model_copy(update={"rows_independent": False})
    for settings in (
        DeploymentSettings(dynamic_batching=DynamicBatching()),
        DeploymentSettings(config_overrides={"dynamic_batching": {}}),
    ):
        with pytest.raises(InvalidConfigError, match="rows of a request to this version are not independent"):
            build_config("m", mixed, settings, [1])
    with pytest.raises(InvalidConfigError, match="at least one"):
        build_config("m", manifest(BATCHED), DeploymentSettings(), [])


@pytest.mark.parametrize("names", [("y",), ("y__1",), ("a__0", "b"), ("a__0", "b__0"), ("a__0", "b__2")])
def test_torchscript_outputs_need_a_position(names: tuple[str, ...]) -> None:
    signature = Signature(inputs=(spec("x", "FP32", 1),), outputs=tuple(spec(name, "FP32", 1) for name in names))
    with pytest.raises(InvalidConfigError, match="<name>__<position>"):
        build_config("m", manifest(signature, Format.TORCHSCRIPT), DeploymentSettings(), [1])


def test_torchscript_outputs_may_have_any_order() -> None:
    signature = Signature(inputs=(spec("x", "FP32", 1),), outputs=(spec("b__1", "FP32", 1), spec("a__0", "FP32", 1)))
    config = build_config("m", manifest(signature, Format.TORCHSCRIPT), DeploymentSettings(), [1])
    assert config["backend"] == "pytorch"
    assert config["default_model_filename"] == "model.pt"


def test_digest_covers_only_settings_that_change_execution() -> None:
    first = build(versions=(1,))
    digest = first["parameters"]["tcp_config_digest"]["string_value"]
    assert build(versions=(1, 2))["parameters"]["tcp_config_digest"]["string_value"] == digest
    renamed = build_config("m~candidate", manifest(BATCHED), DeploymentSettings(), [1])
    assert renamed["parameters"]["tcp_config_digest"]["string_value"] == digest
    assert config_digest(first) == digest
    assert build(instance_count=2)["parameters"]["tcp_config_digest"]["string_value"] != digest
    assert build(parameters={"a": "b"})["parameters"]["tcp_config_digest"]["string_value"] != digest


NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\n"), min_size=1, max_size=20
)
DIMENSIONS = st.one_of(st.just(-1), st.integers(1, 2**40))


@st.composite
def signatures(draw: st.DrawFn) -> Signature:
    batched = draw(st.booleans())

    def tensors() -> tuple[TensorSpec, ...]:
        names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
        return tuple(
            TensorSpec(
                name=name,
                dtype=draw(st.sampled_from(DataType)),
                shape=(*((-1,) if batched else ()), *draw(st.lists(DIMENSIONS, max_size=4))),
            )
            for name in names
        )

    return Signature(inputs=tensors(), outputs=tensors(), batched=batched)


@st.composite
def settings_for(draw: st.DrawFn, signature: Signature) -> DeploymentSettings:
    batches = batching_obstacle(signature) is None
    size = draw(st.sampled_from([None, 0, 1, 64])) if batches else draw(st.sampled_from([None, 0]))
    kind = draw(st.sampled_from(InstanceKind))
    batching = None
    if batches and size != 0 and draw(st.booleans()):
        batching = DynamicBatching(preferred_batch_size=(1,), max_queue_delay_microseconds=draw(st.integers(0, 10**6)))
    return DeploymentSettings(
        instance_count=draw(st.integers(1, 64)),
        instance_kind=kind,
        gpus=() if kind is InstanceKind.CPU else tuple(draw(st.lists(st.integers(0, 7), max_size=3, unique=True))),
        max_batch_size=size,
        dynamic_batching=batching,
        parameters=draw(st.dictionaries(NAMES.filter(lambda name: not name.startswith("tcp_")), NAMES, max_size=3)),
    )


@given(st.data())
def test_any_signature_and_settings_give_a_config_that_parses_back_equal(data: st.DataObject) -> None:
    signature = data.draw(signatures())
    settings = data.draw(settings_for(signature))
    versions = data.draw(st.lists(st.integers(1, 10**9), min_size=1, max_size=4))
    config = build_config("m", manifest(signature), settings, versions)
    parsed = text_format.Parse(to_pbtxt(config), model_config_pb2.ModelConfig())
    assert parsed == json_to_message(config)
    assert message_to_json(parsed) == config
    assert json_to_message(json.loads(json.dumps(config))) == parsed
    assert [tensor.name for tensor in parsed.input] == [tensor.name for tensor in signature.inputs]
    for tensor, spec_ in zip((*parsed.input, *parsed.output), (*signature.inputs, *signature.outputs), strict=True):
        assert all(size == -1 or size > 0 for size in tensor.dims)
        assert tensor.dims
        assert data_type_of(model_config_pb2.DataType.Name(tensor.data_type)) is spec_.dtype
        row = spec_.shape[1:] if parsed.max_batch_size else spec_.shape
        assert not tensor.HasField("reshape") or spec_ in signature.outputs
        assert tuple(tensor.dims) == (row or (1,))
    assert config_digest(config) == config["parameters"]["tcp_config_digest"]["string_value"]


@given(st.data())
def test_overrides_equal_to_generated_fields_change_nothing(data: st.DataObject) -> None:
    """The fields that `model_config` shows can be used as overrides without a contradiction."""
    signature = data.draw(signatures())
    config = build_config("m", manifest(signature), DeploymentSettings(), [1])
    again = {key: config[key] for key in ("input", "output", "max_batch_size", "instance_group") if key in config}
    assert build_config("m", manifest(signature), DeploymentSettings(config_overrides=again), [1]) == config


@pytest.mark.parametrize("dtype", list(DataType))
def test_type_names_convert_both_ways(dtype: DataType) -> None:
    assert data_type_of(triton_type(dtype)) is dtype
    assert triton_type(dtype) in model_config_pb2.DataType.keys()  # noqa: SIM118 - an enum wrapper


@given(st.lists(st.floats(width=32, allow_nan=True), max_size=8))
def test_bfloat16_is_rounded_to_nearest(values: list[float]) -> None:
    array = np.array(values, np.float32)
    back = deserialise(serialise(array, DataType.BF16), DataType.BF16)
    finite = np.isfinite(array) & (np.abs(array) < 3e38) & (np.abs(array) > 1e-37)
    np.testing.assert_allclose(back[finite], array[finite], rtol=2**-8)
    assert np.isnan(back[np.isnan(array)]).all()


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_strings_convert_both_ways(values: list[bytes]) -> None:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    assert list(deserialise(serialise(array, DataType.BYTES), DataType.BYTES)) == values
