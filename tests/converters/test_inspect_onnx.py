"""ONNX files are inspected without being run, and must not refer to files outside their artifact."""

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import silero_vad
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from controlplane.domain.manifest import Format
from controlplane.domain.signature import DataType, Signature, TensorSpec
from controlplane.errors import InvalidArtifactError, InvalidInputError
from converters.inspect import inspect_artifact
from converters.onnx_artifact import load_model

SILERO = Path(silero_vad.__file__).parent / "data"


def signature_of(found: Any) -> Signature:
    assert found.signature is not None
    signature: Signature = found.signature
    return signature


def small(batch="batch", opset: int = 17) -> onnx.ModelProto:
    weights = numpy_helper.from_array(np.ones((4, 3), dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="hand")


def external(folder: Path, location: str, **more: str) -> Path:
    """Return a model whose only weight is stored at ``location``."""
    model = small()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    return folder


def test_a_named_batch_dimension_is_read(models):
    found = inspect_artifact(models.mlp_onnx)
    assert found.format is Format.ONNX
    assert signature_of(found).batched
    assert [str(spec) for spec in (*signature_of(found).inputs, *signature_of(found).outputs)] == [
        "x FP32[?,4]",
        "y FP32[?,3]",
    ]
    assert found.attributes["opset"] == 17
    assert found.attributes["ir_version"] == 8
    assert found.attributes["producer"] == "hand"
    assert found.attributes["parameters"] == 15
    assert found.attributes["dimensions"] == {"x": ["batch", None], "y": ["batch", None]}
    assert found.stored_path("mlp.onnx") == "model.onnx"


def test_metadata_of_the_exporter_are_kept(tmp_path: Path) -> None:
    model = small()
    for key, value in (("stride", "32"), ("names", "{0: 'cat'}"), ("long", "x" * 100_000), ("after", "1")):
        model.metadata_props.add(key=key, value=value)
    onnx.save_model(model, tmp_path / "m.onnx")
    found = inspect_artifact(tmp_path / "m.onnx")
    assert found.attributes["metadata"] == {"stride": "32", "names": "{0: 'cat'}", "after": "1"}
    assert found.attributes["metadata_left_out"] == 1
    assert found.hints[-1].startswith("1 of the file's 4 metadata_props are left out of the manifest")


def test_metadata_are_limited_in_number_and_must_be_text(tmp_path: Path) -> None:
    model = small()
    for number in range(300):
        model.metadata_props.add(key=f"key{number}", value="v")
    model.metadata_props.add(key="", value="v")
    model.metadata_props.add(key="line\nbreak", value="v")
    data = model.SerializeToString().replace(b"key1\x12\x01v", b"key1\x12\x01\xff")
    (tmp_path / "m.onnx").write_bytes(data)
    found = inspect_artifact(tmp_path / "m.onnx")
    metadata = found.attributes["metadata"]
    assert isinstance(metadata, dict)
    assert len(metadata) == 256
    assert "key1" not in metadata
    assert found.attributes["metadata_left_out"] == 302 - 256


def test_name_that_is_not_utf8_is_rejected(tmp_path):
    data = small().SerializeToString()
    assert b"batch" in data
    (tmp_path / "m.onnx").write_bytes(data.replace(b"batch", b"ba\xf4ch"))
    with pytest.raises(
        InvalidArtifactError, match=r"m\.onnx is damaged: it contains the name .* which is not UTF-8 text"
    ):
        inspect_artifact(tmp_path / "m.onnx")


def test_unnamed_equal_dynamic_dimensions_are_not_a_batch(tmp_path):
    onnx.save_model(small(batch=None), tmp_path / "m.onnx")
    found = inspect_artifact(tmp_path / "m.onnx")
    assert not signature_of(found).batched
    assert "batched true" in found.hints[0]
    said = signature_of(found).model_copy(update={"batched": True})
    assert signature_of(inspect_artifact(tmp_path / "m.onnx", signature=said)).batched


def test_silero_keeps_its_scalar_and_its_state_and_does_not_batch():
    found = inspect_artifact(SILERO / "silero_vad.onnx")
    shapes = {spec.name: (spec.dtype, spec.shape) for spec in signature_of(found).inputs}
    assert shapes["sr"] == (DataType.INT64, ())
    assert shapes["state"] == (DataType.FP32, (2, -1, 128))
    assert not signature_of(found).batched


def test_initializers_among_the_inputs_are_no_inputs(tmp_path):
    model = small()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    onnx.save_model(model, tmp_path / "m.onnx")
    assert [spec.name for spec in signature_of(inspect_artifact(tmp_path / "m.onnx")).inputs] == ["x"]


def test_a_sequence_output_gives_no_signature_and_says_why(tmp_path):
    model = small()
    node = helper.make_node("SequenceConstruct", ["y"], ["z"])
    model.graph.node.append(node)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_sequence_value_info("z", TensorProto.FLOAT, None))
    onnx.save_model(model, tmp_path / "m.onnx")
    found = inspect_artifact(tmp_path / "m.onnx")
    assert found.signature is None
    assert "'z' is a sequence" in str(found.unservable)


def test_the_content_decides_not_the_suffix(tmp_path, models):
    odd = tmp_path / "weights.pt"
    odd.write_bytes(models.mlp_onnx.read_bytes())
    assert inspect_artifact(odd).format is Format.ONNX
    with pytest.raises(InvalidArtifactError, match="declared as torchscript, but its content is onnx"):
        inspect_artifact(odd, format=Format.TORCHSCRIPT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "other"}, "other"),
        ({"dtype": DataType.INT64}, "INT64"),
        ({"shape": (-1, 5)}, r"\?,5"),
        ({"shape": (-1,)}, r"\[\?\]"),
    ],
)
def test_a_given_signature_that_the_file_contradicts_is_refused(models, change, message):
    read = signature_of(inspect_artifact(models.mlp_onnx))
    given = Signature(inputs=(read.inputs[0].model_copy(update=change),), outputs=read.outputs)
    with pytest.raises(InvalidArtifactError, match=message):
        inspect_artifact(models.mlp_onnx, signature=given)


def test_fixed_first_dimension_cannot_be_declared_batched(tmp_path):
    onnx.save_model(small(batch=1), tmp_path / "m.onnx")
    given = Signature(
        inputs=(TensorSpec(name="x", dtype="FP32", shape=(-1, 4)),),
        outputs=(TensorSpec(name="y", dtype="FP32", shape=(-1, 3)),),
        batched=True,
    )
    with pytest.raises(InvalidArtifactError, match="fixed at 1"):
        inspect_artifact(tmp_path / "m.onnx", signature=given)


def test_external_data_inside_the_folder_is_kept(models):
    found = inspect_artifact(models.external)
    assert found.main_file == "net.onnx"
    external: Any = found.attributes["external_data"]
    assert list(external) == ["weights.bin"]
    assert found.stored_path("net.onnx") == "model.onnx"
    assert found.stored_path("weights.bin") == "weights.bin"


def test_an_artifact_of_hard_links_is_read_and_its_files_stay_as_they_are(models, tmp_path):
    before = {file.name: file.read_bytes() for file in models.external.iterdir()}
    for file in models.external.iterdir():
        os.link(file, tmp_path / file.name)
    assert inspect_artifact(tmp_path) == inspect_artifact(models.external)
    loaded = load_model(tmp_path / "net.onnx", tmp_path)
    whole = onnx.load_model(models.mlp_onnx)
    assert [numpy_helper.to_array(t).tolist() for t in loaded.graph.initializer] == [
        numpy_helper.to_array(t).tolist() for t in whole.graph.initializer
    ]
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_loading_checks_where_the_external_data_lies(tmp_path):
    (tmp_path / "secret").write_bytes(b"x" * 64)
    folder = external(tmp_path / "artifact", "../secret")
    with pytest.raises(InvalidArtifactError, match="outside the artifact"):
        load_model(folder / "net.onnx", folder)


def test_external_data_in_the_model_file_does_not_change_that_file(tmp_path):
    folder = external(tmp_path / "artifact", "net.onnx", offset="0", length="48")
    before = (folder / "net.onnx").read_bytes()
    assert inspect_artifact(folder).attributes["external_data"] == {"net.onnx": len(before)}
    assert (folder / "net.onnx").read_bytes() == before


def test_a_bare_file_without_its_external_data_says_what_to_give(models, tmp_path):
    alone = tmp_path / "net.onnx"
    alone.write_bytes((models.external / "net.onnx").read_bytes())
    with pytest.raises(InvalidArtifactError, match=r"'weights.bin' .* give the folder"):
        inspect_artifact(alone)


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "a/../../secret", "..\\secret", ""])
def test_external_data_may_not_leave_the_artifact(tmp_path, location):
    (tmp_path / "secret").write_bytes(b"x" * 64)
    with pytest.raises(InvalidArtifactError, match="outside the artifact"):
        inspect_artifact(external(tmp_path / "artifact", location))


def test_external_data_through_a_link_may_not_leave_the_artifact(tmp_path):
    (tmp_path / "secret").write_bytes(b"x" * 64)
    folder = external(tmp_path / "artifact", "inner/secret")
    (folder / "inner").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(InvalidArtifactError, match="outside the artifact"):
        inspect_artifact(folder)
    with pytest.raises(InvalidArtifactError, match="outside the artifact"):
        inspect_artifact(folder / "net.onnx")


def test_external_data_in_a_subgraph_is_found_too(tmp_path):
    constant = helper.make_tensor("hidden", TensorProto.FLOAT, [2], [1, 2])
    constant.ClearField("float_data")
    constant.data_location = TensorProto.EXTERNAL
    constant.external_data.add(key="location", value="../../etc/passwd")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=constant)],
        "branch",
        [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [2])],
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)],
        "g",
        [helper.make_tensor_value_info("flag", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidArtifactError, match="outside the artifact"):
        inspect_artifact(tmp_path / "m.onnx")


def test_external_data_that_is_too_short_is_refused(tmp_path):
    folder = external(tmp_path / "artifact", "w.bin", offset="0", length="48")
    (folder / "w.bin").write_bytes(b"\0" * 47)
    with pytest.raises(InvalidArtifactError, match=r"has only 47 bytes: the file is truncated"):
        inspect_artifact(folder)
    (folder / "w.bin").write_bytes(b"\0" * 48)
    assert inspect_artifact(folder).attributes["external_data"] == {"w.bin": 48}


def test_more_than_two_gibibytes_of_external_data_are_read_by_path(tmp_path):
    elements = 600_000_000
    folder = external(tmp_path / "artifact", "w.bin", offset="0", length=str(4 * elements))
    model = onnx.load_model(folder / "net.onnx", load_external_data=False)
    model.graph.initializer[0].dims[:] = [4, elements // 4]
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = elements // 4
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    with (folder / "w.bin").open("wb") as file:
        file.truncate(4 * elements)  # a sparse file: it has no content, and inspection must not read it
    found = inspect_artifact(folder)
    assert found.attributes["parameters"] == elements
    assert found.attributes["external_data"] == {"w.bin": 2_400_000_000}


def test_a_folder_needs_exactly_one_model(tmp_path, models):
    with pytest.raises(InvalidArtifactError, match="found: none"):
        inspect_artifact(tmp_path)
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_bytes(models.mlp_onnx.read_bytes())
    with pytest.raises(InvalidArtifactError, match=r"a\.onnx, b\.onnx"):
        inspect_artifact(tmp_path)
    (tmp_path / "a.onnx").replace(tmp_path / "model.onnx")
    assert inspect_artifact(tmp_path).main_file == "model.onnx"


def test_a_model_in_a_subfolder_is_refused_with_a_hint(tmp_path, models):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "m.onnx").write_bytes(models.mlp_onnx.read_bytes())
    with pytest.raises(InvalidArtifactError, match="give that folder"):
        inspect_artifact(tmp_path)


WHOLE = small().SerializeToString()


@given(st.integers(0, len(WHOLE) - 1))
def test_truncated_onnx_file_gives_a_one_line_error(tmp_path_factory, length):
    path = tmp_path_factory.mktemp("cut") / "m.onnx"
    path.write_bytes(WHOLE[:length])
    with pytest.raises(InvalidArtifactError) as caught:
        inspect_artifact(path)
    assert "\n" not in caught.value.message
    assert "m.onnx" in caught.value.message


@settings(max_examples=60)
@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_damaged_onnx_file_is_read_or_rejected(tmp_path_factory, position, flip):
    path = tmp_path_factory.mktemp("bad") / "m.onnx"
    path.write_bytes(WHOLE[:position] + bytes([WHOLE[position] ^ flip]) + WHOLE[position + 1 :])
    with contextlib.suppress(InvalidInputError):
        inspect_artifact(path)
