"""Detects settings of a deployment that make Triton load code or read files. Pure.

Triton's model configuration can name libraries, execution environments, repository agents and data files. A setting
that can do so is a way to run code on the Triton server. So without further permissions a deployment may use only the
settings that this module lists. Every other setting requires the scope `code`, including settings that later versions
of Triton add.

Sources: `model_config.proto` of Triton 2.51 and the documentation of its ONNX Runtime, PyTorch and Python backends.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.manifest import Format
from controlplane.domain.pipelines import ENSEMBLE
from controlplane.errors import InvalidArtifactError
from controlplane.triton.config_json import METADATA_PREFIX, canonical

_THREADS = frozenset({"intra_op_thread_count", "inter_op_thread_count", "intra_op_num_threads", "inter_op_num_threads"})
_PYTHON = frozenset({"force_cpu_only_input_tensors"})
"""The embedded server's backends run in the Python backend, which also reads its own parameters."""

PARAMETERS: Mapping[Format, frozenset[str]] = {
    Format.ONNX: _THREADS
    | _PYTHON
    | {
        "execution_mode",
        "enable_mem_arena",
        "enable_mem_pattern",
        "memory.enable_memory_arena_shrinkage",
        "gpu_mem_limit",
        "arena_extend_strategy",
        "cudnn_conv_algo_search",
        "cudnn_conv_use_max_workspace",
        "do_copy_in_default_stream",
        # Session options of ONNX Runtime that name neither a file nor a library.
        "session.disable_prepacking",
        "session.dynamic_block_base",
        "session.force_spinning_stop",
        "session.inter_op.allow_spinning",
        "session.intra_op.allow_spinning",
        "session.set_denormal_as_zero",
        "session.use_device_allocator_for_initializers",
    },
    Format.TORCHSCRIPT: _THREADS
    | _PYTHON
    | {
        "disable_optimized_execution",
        "inference_mode",
        "disable_cudnn",
        "enable_weight_sharing",
        "enable_cache_cleaning",
        "enable_jit_executor",
        "enable_jit_profiling",
        "enable_tensor_fuser",
        "enable_nvfuser",
    },
}
"""Parameters that a deployment may set, by format, in lower case."""

# The fields of `config_overrides` that a deployment may set. True allows all nested fields; a mapping names the allowed
# ones.
_ALL = True
_TENSOR = dict.fromkeys(
    (
        "name",
        "data_type",
        "dims",
        "reshape",
        "format",
        "is_shape_tensor",
        "is_non_linear_format_io",
        "allow_ragged_batch",
        "optional",
    ),
    _ALL,
)
_ACCELERATOR = {
    "name": _ALL,
    "parameters": {
        "precision_mode": _ALL,
        "max_workspace_size_bytes": _ALL,
        "max_cached_engines": _ALL,
        "minimum_segment_size": _ALL,
    },
}
_INITIAL_STATE = {"data_type": _ALL, "dims": _ALL, "zero_data": _ALL, "name": _ALL}
_STATE = {
    "input_name": _ALL,
    "output_name": _ALL,
    "data_type": _ALL,
    "dims": _ALL,
    "initial_state": _INITIAL_STATE,
    "use_same_buffer_for_input_output": _ALL,
    "use_growable_memory": _ALL,
}
_WARMUP_INPUT = {"data_type": _ALL, "dims": _ALL, "zero_data": _ALL, "random_data": _ALL}
OVERRIDES: Mapping[str, Any] = {
    "max_batch_size": _ALL,
    "input": _TENSOR,
    "output": _TENSOR,
    "batch_input": _ALL,
    "batch_output": _ALL,
    "optimization": {
        "graph": _ALL,
        "priority": _ALL,
        "cuda": _ALL,
        "input_pinned_memory": _ALL,
        "output_pinned_memory": _ALL,
        "gather_kernel_buffer_threshold": _ALL,
        "eager_batching": _ALL,
        "execution_accelerators": {
            "gpu_execution_accelerator": _ACCELERATOR,
            "cpu_execution_accelerator": _ACCELERATOR,
        },
    },
    "dynamic_batching": _ALL,
    "sequence_batching": {
        "direct": _ALL,
        "oldest": _ALL,
        "max_sequence_idle_microseconds": _ALL,
        "control_input": _ALL,
        "state": _STATE,
        "iterative_sequence": _ALL,
    },
    "instance_group": _ALL,
    "metric_tags": _ALL,
    "model_warmup": {"name": _ALL, "batch_size": _ALL, "count": _ALL, "inputs": {"*": _WARMUP_INPUT}},
    "model_transaction_policy": _ALL,
    "response_cache": _ALL,
    "model_metrics": _ALL,
    # Decided by the control plane; refused elsewhere unless they equal its decisions.
    "name": _ALL,
    "backend": _ALL,
    "platform": _ALL,
    "runtime": _ALL,
    "version_policy": _ALL,
    "default_model_filename": _ALL,
    "ensemble_scheduling": _ALL,
}
_AUTHOR = {
    **{name: below for name, below in OVERRIDES.items() if name != "runtime"},  # it can name any file of the version
    "cc_model_filenames": _ALL,
    "output": {**_TENSOR, "label_filename": _ALL},
    "sequence_batching": {
        **OVERRIDES["sequence_batching"],
        "state": {**_STATE, "initial_state": {**_INITIAL_STATE, "data_file": _ALL}},
    },
    "model_warmup": {
        **OVERRIDES["model_warmup"],
        "inputs": {"*": {**_WARMUP_INPUT, "input_data_file": _ALL}},
    },
}
"""The fields that an author's configuration may set: files that it names are files of the version."""


def backend_libraries(paths: Iterable[str]) -> list[str]:
    """Return the paths of an artifact that Triton would load as a backend's library.

    Triton searches the folder of the version and that of the model for ``libtriton_NAME.so`` before its own backend
    directory (`TRITONSERVER_ServerOptionsSetBackendDirectory`), so such a file replaces the backend in the server's
    process.
    """
    return sorted(path for path in paths if any(part.casefold().startswith("libtriton_") for part in path.split("/")))


def refuse_backend_libraries(paths: Iterable[str]) -> None:
    """Check that an artifact without a configuration of its own brings no library of a backend.

    Raises:
        InvalidArtifactError: It does.
    """
    if libraries := backend_libraries(paths):
        raise InvalidArtifactError(
            f"Triton would load {libraries[0]!r} in place of its own backend; remove the file, or publish a model "
            "directory with config.pbtxt, which needs the scope 'code'",
            path=libraries[0],
        )


def author_code(config: Mapping[str, Any], backend: str, paths: Iterable[str]) -> str:
    """Return why publishing a model directory needs the scope `code`; empty if its files are only data.

    Only the ONNX Runtime backend reads files that are data, and an ensemble has no code: every other backend runs code
    of the version, or its documentation does not exclude that.

    Args:
        config: The author's configuration, in Triton's JSON form.
        backend: The backend that it names.
        paths: The directory's files.
    """
    if backend not in {"onnxruntime", ENSEMBLE}:
        return f"the backend {backend!r} can run code that the version contains"
    if libraries := backend_libraries(paths):
        return f"Triton loads {libraries[0]!r} as the library of a backend"
    fields = {name: value for name, value in config.items() if name != "parameters"}
    found = [path for path, _ in _beyond(fields, _AUTHOR, "")]
    found += [
        f".parameters.{name}"
        for name in config.get("parameters", {})
        if name.lower() not in PARAMETERS[Format.ONNX]
        and not name.startswith(METADATA_PREFIX)
        and backend != ENSEMBLE  # no code reads them
    ]
    return f"{found[0].removeprefix('.')} in config.pbtxt can make Triton load code or files" if found else ""


def code_settings(settings: DeploymentSettings, kind: Format) -> dict[str, str]:
    """Return the settings that require the scope `code`: their values, as JSON, by path.

    Args:
        settings: The settings of the deployment.
        kind: The format of its version.

    Raises:
        InvalidConfigError: ``config_overrides`` has a field that Triton's configuration does not have.
    """
    known = PARAMETERS.get(kind, frozenset())
    found = {
        f"parameters.{name}": json.dumps(value)
        for name, value in settings.parameters.items()
        if name.lower() not in known
    }
    overrides = canonical(settings.config_overrides)
    parameters = overrides.pop("parameters", {})
    for name, value in parameters.items():
        if name.lower() not in known:
            found[f"config_overrides.parameters.{name}"] = json.dumps(value, sort_keys=True)
    for path, value in _beyond(overrides, OVERRIDES, "config_overrides"):
        found[path] = json.dumps(value, sort_keys=True)
    return found


def _beyond(value: Any, allowed: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield each value that is set and not allowed, with its path."""
    if allowed is _ALL:
        return
    if isinstance(value, Mapping):
        for name, item in value.items():
            below = allowed.get(name, allowed.get("*"))
            here = f"{path}.{name}"
            if below is None:
                yield here, item
            else:
                yield from _beyond(item, below, here)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for number, item in enumerate(value):
            yield from _beyond(item, allowed, f"{path}[{number}]")
    else:
        yield path, value
