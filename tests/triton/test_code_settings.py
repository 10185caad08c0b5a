"""Settings that make Triton load code or files need the scope `code`; the allow-list says which do not."""

from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from tritonclient.grpc import model_config_pb2

from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.manifest import Format
from controlplane.triton.code_settings import OVERRIDES, code_settings

BRINGS_CODE: list[tuple[dict[str, Any], str]] = [
    ({"parameters": {"EXECUTION_ENV_PATH": "$$TRITON_MODEL_DIRECTORY/1"}}, "parameters.EXECUTION_ENV_PATH"),
    ({"parameters": {"execution_env_path": "/x"}}, "parameters.execution_env_path"),
    ({"parameters": {"session.model_external_initializers_file_folder_path": "/"}}, "parameters.session."),
    ({"parameters": {"a_parameter_of_a_later_triton": "1"}}, "parameters.a_parameter_of_a_later_triton"),
    (
        {"config_overrides": {"parameters": {"EXECUTION_ENV_PATH": {"string_value": "/x"}}}},
        "config_overrides.parameters.EXECUTION_ENV_PATH",
    ),
    (
        {"config_overrides": {"model_operations": {"op_library_filename": ["x.so"]}}},
        "config_overrides.model_operations",
    ),
    ({"config_overrides": {"modelOperations": {"opLibraryFilename": ["x.so"]}}}, "config_overrides.model_operations"),
    ({"config_overrides": {"cc_model_filenames": {"8.6": "x"}}}, "config_overrides.cc_model_filenames"),
    (
        {"config_overrides": {"model_repository_agents": {"agents": [{"name": "x"}]}}},
        "config_overrides.model_repository_agents",
    ),
    (
        {"config_overrides": {"output": [{"name": "y", "label_filename": "../../up.key"}]}},
        "config_overrides.output[0].label_filename",
    ),
    (
        {"config_overrides": {"model_warmup": [{"name": "w", "inputs": {"x": {"input_data_file": "../../up.key"}}}]}},
        "config_overrides.model_warmup[0].inputs.x.input_data_file",
    ),
    (
        {
            "config_overrides": {
                "sequence_batching": {"state": [{"input_name": "s", "initial_state": [{"data_file": "../up.key"}]}]}
            }
        },
        "config_overrides.sequence_batching.state[0].initial_state[0].data_file",
    ),
    (
        {
            "config_overrides": {
                "optimization": {
                    "execution_accelerators": {
                        "gpu_execution_accelerator": [
                            {"name": "tensorrt", "parameters": {"trt_engine_cache_path": "/x"}}
                        ]
                    }
                }
            }
        },
        "config_overrides.optimization.execution_accelerators.gpu_execution_accelerator[0].parameters.trt_engine",
    ),
]


@pytest.mark.parametrize(("settings", "path"), BRINGS_CODE)
def test_settings_that_can_load_code_or_files_are_found(settings: dict[str, Any], path: str) -> None:
    found = code_settings(DeploymentSettings.model_validate(settings), Format.ONNX)
    assert len(found) == 1
    assert next(iter(found)).startswith(path)


@pytest.mark.parametrize(
    "settings",
    [
        {"parameters": {"intra_op_thread_count": "2", "session.intra_op.allow_spinning": "0"}},
        {"config_overrides": {"parameters": {"execution_mode": {"string_value": "1"}}}},
        {"config_overrides": {"optimization": {"graph": {"level": 1}, "cuda": {"graphs": True}}}},
        {
            "config_overrides": {
                "optimization": {
                    "execution_accelerators": {
                        "gpu_execution_accelerator": [{"name": "tensorrt", "parameters": {"precision_mode": "FP16"}}]
                    }
                }
            }
        },
        {"config_overrides": {"response_cache": {"enable": True}, "instance_group": [{"count": 2}]}},
        {"config_overrides": {"model_warmup": [{"name": "w", "inputs": {"x": {"zero_data": True, "dims": [2]}}}]}},
        {"warmup": True, "max_batch_size": 16, "dynamic_batching": {"max_queue_delay_microseconds": 100}},
    ],
)
def test_tuning_settings_are_allowed(settings: dict[str, Any]) -> None:
    assert code_settings(DeploymentSettings.model_validate(settings), Format.ONNX) == {}


def test_parameter_is_allowed_only_for_its_own_backend() -> None:
    settings = DeploymentSettings(parameters={"INFERENCE_MODE": "true"})
    assert code_settings(settings, Format.TORCHSCRIPT) == {}
    assert list(code_settings(settings, Format.ONNX)) == ["parameters.INFERENCE_MODE"]


def test_no_allowed_field_names_a_file_or_a_library() -> None:
    """Walk Triton's own description of its configuration; a field that is allowed has no name of a path."""
    suspicious = ("file", "path", "library", "agent", "directory", "folder", "url")
    allowed: list[str] = []

    def walk(descriptor: Descriptor, rules: Any, path: str, depth: int) -> None:
        for field in descriptor.fields:
            below = rules if rules is True else rules.get(field.name, rules.get("*"))
            if below is None:
                continue
            allowed.append(f"{path}{field.name}")
            nested: Descriptor | None = field.message_type
            if nested is not None and nested.GetOptions().map_entry:
                value: FieldDescriptor = nested.fields_by_name["value"]
                nested, below = value.message_type, below if below is True else below.get("*", below)
            if nested is not None and depth < 6:
                walk(nested, below, f"{path}{field.name}.", depth + 1)

    walk(model_config_pb2.ModelConfig.DESCRIPTOR, OVERRIDES, "", 0)
    assert len(allowed) > 60
    # `config_overrides` must not change the first at all; the second is an optimization profile of TensorRT.
    harmless = {"default_model_filename", "instance_group.profile"}
    assert [
        name for name in allowed if any(word in name.rpartition(".")[2] for word in suspicious) and name not in harmless
    ] == []
