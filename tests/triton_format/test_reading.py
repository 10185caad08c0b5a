"""Reading a config.pbtxt, and merging a deployment's settings over it. Pure."""

from typing import Any

import pytest

from controlplane.domain.deployment import DeploymentSettings, DynamicBatching
from controlplane.domain.manifest import FileEntry, Format, Manifest
from controlplane.domain.model_directory import is_model_directory, shared_files, stored_path, version_files
from controlplane.errors import InvalidArtifactError, InvalidConfigError
from controlplane.triton.author_config import FILES_PARAMETER
from controlplane.triton.model_config import build_config
from controlplane.triton.model_directory import ModelDirectory, read_model_directory
from tests.support.api import sha256
from tests.triton_format import directories

TENSORS = (
    'input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ] output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]'
)


def read(files: dict[str, bytes]) -> ModelDirectory:
    return read_model_directory(files["config.pbtxt"], set(files))


def onnx(config: str, **files: bytes) -> ModelDirectory:
    return read({"config.pbtxt": config.encode(), "1/model.onnx": b"", **files})


def manifest(files: dict[str, bytes]) -> Manifest:
    found = read(files)
    entries = [FileEntry(path=path, sha256=sha256(data), size_bytes=len(data)) for path, data in files.items()]
    return Manifest(format=Format.TRITON, files=tuple(entries), signature=found.signature, config=found.config)


def built(files: dict[str, bytes], **settings: Any) -> dict[str, Any]:
    return build_config("m", manifest(files), DeploymentSettings(**settings), [5])


def test_paths_of_a_directory() -> None:
    assert is_model_directory(["config.pbtxt", "3/model.onnx"])
    assert not is_model_directory(["config.pbtxt", "model.onnx", "03/x", "0/x"])
    assert stored_path("37/sub/a", 37) == "1/sub/a"
    assert stored_path("3/a", 37) == "3/a"
    found = manifest(directories.onnx())
    assert list(version_files(found)) == ["model.onnx"]
    assert list(shared_files(found)) == ["labels.txt", "warmup/x.bin"]


def test_signature_is_that_of_the_configuration() -> None:
    found = onnx(
        "max_batch_size: 8 "
        'input [ { name: "x" data_type: TYPE_FP16 dims: [ -1, 3 ] }, '
        '{ name: "t" data_type: TYPE_STRING dims: [ 1 ] reshape { shape: [ ] } optional: true } ] '
        'output [ { name: "y" data_type: TYPE_INT64 dims: [ 2 ] } ]'
    )
    assert found.backend == "onnxruntime", "taken from the file"
    assert found.signature is not None
    assert found.signature.batched
    assert [str(spec) for spec in found.signature.inputs] == ["x FP16[?,?,3]", "t BYTES[?,1]"]
    assert [spec.optional for spec in found.signature.inputs] == [False, True]
    assert onnx('backend: "onnxruntime"').signature is None


def test_name_and_version_policy_are_not_the_authors() -> None:
    found = read(directories.onnx())
    assert found.config.keys().isdisjoint({"name", "version_policy"})
    assert found.notes == ("version_policy in config.pbtxt has no effect: a deployment names its version",)
    own = onnx(TENSORS + ' parameters { key: "tcp_config_digest" value { string_value: "a" } }')
    assert own.config["parameters"] == {}


@pytest.mark.parametrize(
    ("platform", "file", "backend"),
    [
        ("torch_aoti", "1/model.pt2", "pytorch"),
        ("tensorflow_savedmodel", "1/model.savedmodel/saved_model.pb", "tensorflow"),
        ("pytorch_libtorch", "1/model.pt", "pytorch"),
    ],
)
def test_model_file_is_that_of_the_platform(platform: str, file: str, backend: str) -> None:
    config = f'platform: "{platform}" {TENSORS}'.encode()
    found = read({"config.pbtxt": config, file: b""})
    assert (found.backend, found.config["platform"]) == (backend, platform)
    files = {"config.pbtxt": config, file: b""}
    assert file.startswith(f"1/{built(files)['default_model_filename']}")
    with pytest.raises(InvalidArtifactError, match=f"has no {file.split('/')[1]!r}"):
        read({"config.pbtxt": config, "1/other": b""})


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("input {", "line 1"),
        ('nonsense: "x"', 'has no field named "nonsense"'),
        ('platform: "ensemble"', "an ensemble without steps"),
        (directories.ENSEMBLE.decode() + 'backend: "python"', "describes an ensemble and names a backend"),
        (directories.ENSEMBLE.decode() + "instance_group [ { count: 2 } ]", "has an instance_group"),
        (directories.ENSEMBLE.decode().replace('value: "x"', 'value: "t"'), "takes the tensor 't', which is neither"),
        (directories.ENSEMBLE.decode().replace('"a"', '"a b"'), "a member that cannot be deployed: 'a b'"),
        ('platform: "caffe2_netdef"', "unknown platform 'caffe2_netdef'"),
        (f'backend: "tensorrt" {TENSORS}', "has no 'model.plan', which the backend 'tensorrt' loads"),
        (f'default_model_filename: "../x.onnx" {TENSORS}', "has no '../x.onnx'"),
        ('output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "l.txt" } ]', "names 'l.txt'"),
        ('output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "1/l" } ]', "in a version folder"),
        (
            f'{TENSORS} parameters {{ key: "EXECUTION_ENV_PATH" '
            'value { string_value: "$$TRITON_MODEL_DIRECTORY/env.tar.gz" } }',
            "EXECUTION_ENV_PATH in config.pbtxt names 'env.tar.gz'",
        ),
        ('input [ { name: "x" dims: [ 2 ] } ]', "input 'x' needs a name and a data_type"),
        ('input [ { name: "x" data_type: TYPE_FP32 } ]', "needs dims"),
        (TENSORS + TENSORS, "input name 'x' appears more than once"),
    ],
)
def test_configuration_that_cannot_work_is_refused(config: str, reason: str) -> None:
    with pytest.raises(InvalidArtifactError, match=r"config\.pbtxt|version folder") as raised:
        onnx(config)
    assert reason in raised.value.message


def test_config_that_is_not_text_is_refused() -> None:
    with pytest.raises(InvalidArtifactError, match="not UTF-8"):
        read_model_directory(b"\xff\xfe", {"1/model.onnx"})


def test_what_contains_code_is_recognized() -> None:
    assert read(directories.onnx()).code == ""
    assert "backend 'python'" in read(directories.scaling()).code
    assert "backend 'tensorrt'" in read(directories.named("tensorrt", "model.plan")).code
    for field in (
        'model_operations { op_library_filename: "x.so" }',
        'model_repository_agents { agents [ { name: "x" } ] }',
        'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "/opt/env" } }',
        'parameters { key: "unknown" value { string_value: "1" } }',
    ):
        assert onnx(f"{TENSORS} {field}").code, field
    assert not onnx(f'{TENSORS} parameters {{ key: "intra_op_thread_count" value {{ string_value: "1" }} }}').code


def test_author_decides_what_settings_leave_open() -> None:
    config = built(directories.onnx())
    assert config["name"] == "m"
    assert config["version_policy"] == {"specific": {"versions": [5]}}
    assert config["max_batch_size"] == 4
    assert config["dynamic_batching"]["preferred_batch_size"] == [2, 4]
    assert "instance_group" not in config
    assert config["parameters"].keys() == {"tcp_config_digest", FILES_PARAMETER}
    assert built(directories.scaling())["instance_group"] == [{"kind": "KIND_CPU"}], "as Triton does for Python"


def test_settings_are_merged_over_the_configuration() -> None:
    config = built(
        directories.onnx(),
        max_batch_size=2,
        instance_count=3,
        dynamic_batching=DynamicBatching(preferred_batch_size=(2,)),
        config_overrides={"dynamic_batching": {"max_queue_delay_microseconds": 7}},
    )
    assert config["max_batch_size"] == 2
    assert config["instance_group"] == [{"count": 3}], "KIND_AUTO is the default"
    assert config["dynamic_batching"] == {"preferred_batch_size": [2], "max_queue_delay_microseconds": 7}
    assert config["response_cache"] == {"enable": True}


@pytest.mark.parametrize(
    ("files", "settings", "reason"),
    [
        (directories.onnx(), {"max_batch_size": 0}, "its tensors have a batch dimension; use a number from 1"),
        (directories.scaling(), {"max_batch_size": 2}, "its tensors have no batch dimension; use 0"),
        (directories.onnx(), {"warmup": True}, "contradicts model_warmup"),
        (directories.counting(), {"dynamic_batching": {}}, "contradicts sequence batching"),
        (directories.scaling(), {"dynamic_batching": {}}, "has none; remove it"),
        (directories.onnx(), {"config_overrides": {"backend": "python"}}, "the control plane determines it"),
        (
            directories.scaling(),
            {"config_overrides": {"model_transaction_policy": {"decoupled": True}}},
            "decoupled models are published with their own config.pbtxt",
        ),
    ],
)
def test_settings_that_contradict_the_configuration_are_refused(
    files: dict[str, bytes], settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidConfigError, match=reason):
        built(files, **settings)


def test_several_instance_groups_are_not_changed_by_one_setting() -> None:
    groups = "instance_group [ { count: 1 kind: KIND_CPU }, { count: 2 kind: KIND_GPU } ]"
    files = {"config.pbtxt": f"{TENSORS} {groups}".encode(), "1/model.onnx": b""}
    assert len(built(files)["instance_group"]) == 2
    with pytest.raises(InvalidConfigError, match="2 instance groups"):
        built(files, instance_count=2)


def test_versions_with_other_shared_files_have_other_configurations() -> None:
    one, same, other = (built(directories.onnx(factor, labels=text)) for factor, text in ((1, "a"), (2, "a"), (1, "b")))
    assert one["parameters"] == same["parameters"], "only the model file differs"
    assert one["parameters"] != other["parameters"]
