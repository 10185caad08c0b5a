"""Common code of the Python-based backends: requests, responses, batching, thread settings.

It runs inside Triton's stub processes, beside each backend's `model.py`, and imports nothing from this project.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

SCALARS_PARAMETER = "tcp_scalars"

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Any], Sequence[str]], Mapping[str, Any]]


class Model:
    """The model's configuration as the stub passes it, parsed once.

    Args:
        args: The dictionary that `initialize` receives.
    """

    def __init__(self, args: Mapping[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.name = args["model_name"]
        self.config = config
        self.max_batch_size = config.get("max_batch_size", 0)
        self.inputs = {tensor["name"]: tensor for tensor in config["input"]}
        self.outputs = {tensor["name"]: tensor for tensor in config["output"]}
        self.parameters = {
            name.lower(): value.get("string_value", "") for name, value in config.get("parameters", {}).items()
        }
        self.on_gpu = args["model_instance_kind"] == "GPU"
        self.device_id = int(args["model_instance_device_id"])
        self.scalars = frozenset(self.parameters.get(SCALARS_PARAMETER, "").split("\n")) - {""}
        folder = Path(args["model_repository"]) / args["model_version"]
        self.path = folder / config["default_model_filename"]
        if not self.path.is_file():
            raise ValueError(f"{self.path.name} is missing in version {args['model_version']} of {self.name}")

    def threads(self, what: str) -> int:
        """Return the number of threads for one operator (``intra``) or between operators (``inter``).

        The parameter names are those of Triton's own backends; the default divides the machine's cores among the
        instances.
        """
        for key in (f"{what}_op_thread_count", f"{what}_op_num_threads"):
            text = str(self.parameters.get(key, ""))
            if text:
                if not text.isdigit():
                    raise ValueError(f"parameter {key} must be a number of threads, not {text!r}")
                if int(text) > 0:
                    return int(text)
        if what == "inter":
            return 1
        groups = self.config.get("instance_group", [])
        instances: int = sum(group.get("count", 1) for group in groups if group.get("kind") == "KIND_CPU")
        return max(1, len(os.sched_getaffinity(0)) // max(1, instances))


def serve(requests: Sequence[Any], model: Model, run: Run) -> list[Any]:
    """Answer requests, several in one run if they are compatible.

    Args:
        requests: Triton's requests.
        model: The `Model`.
        run: Takes arrays by input name and the requested output names, returns arrays by output name.

    Returns:
        One response per request, in the same order. A request that fails gets an error and does not affect the others.
    """
    read = [_read(request, model) for request in requests]
    responses: list[Any] = [None] * len(requests)
    for members in _groups(requests, read, model):
        if len(members) > 1:
            try:
                _run_together(members, requests, read, model, run, responses)
                continue
            except Exception as error:  # noqa: BLE001 - whatever the model raises
                # At least one request is bad; run one by one, the others succeed.
                pb_utils.Logger.log_verbose(f"{model.name}: a batch failed ({error}), running its requests one by one")
        for index in members:
            responses[index] = _run_alone(requests[index], read[index], model, run)
    return responses


def _wanted(request: Any, model: Model) -> list[str]:
    """Return the outputs that a request asks for, in the configuration's order.

    Triton passes them as a set, whose order differs between processes.
    """
    requested = set(request.requested_output_names())
    return [name for name in model.outputs if name in requested]


def _read(request: Any, model: Model) -> dict[str, Any]:
    arrays = {}
    for tensor in request.inputs():
        if model.inputs[tensor.name()]["data_type"] == "TYPE_BF16":
            arrays[tensor.name()] = tensor  # numpy cannot represent it; the backend uses it as it is
        else:
            arrays[tensor.name()] = tensor.as_numpy()
    return arrays


def _groups(requests: Sequence[Any], read: Sequence[Mapping[str, Any]], model: Model) -> list[list[int]]:
    """Return the indices of requests that can share a run: same inputs, same row shape, same outputs."""
    if model.max_batch_size < 2 or len(requests) < 2:
        return [[index] for index in range(len(requests))]
    groups: dict[Any, list[int]] = {}
    for index, arrays in enumerate(read):
        if not all(isinstance(array, np.ndarray) and array.ndim for array in arrays.values()):
            groups[index] = [index]
            continue
        rows = {array.shape[0] for array in arrays.values()}
        key = (
            tuple(sorted((name, array.shape[1:], array.dtype.str) for name, array in arrays.items())),
            tuple(_wanted(requests[index], model)),
        )
        # A request whose inputs have different numbers of rows cannot be separated from a batch again.
        groups.setdefault(key if len(rows) == 1 else index, []).append(index)
    return list(groups.values())


def _run_together(
    members: Sequence[int],
    requests: Sequence[Any],
    read: Sequence[Mapping[str, Array]],
    model: Model,
    run: Run,
    responses: list[Any],
) -> None:
    sizes = [next(iter(read[index].values())).shape[0] for index in members]
    joined = {name: np.concatenate([read[index][name] for index in members]) for name in read[members[0]]}
    wanted = _wanted(requests[members[0]], model)
    results = run(joined, wanted)
    total = sum(sizes)
    for name in wanted:
        if results[name].shape[:1] != (total,):
            raise ValueError(f"output {name!r} has shape {results[name].shape}, not {total} rows")
    start = 0
    for index, size in zip(members, sizes, strict=True):
        rows = {name: results[name][start : start + size] for name in wanted}
        responses[index] = _response(rows, wanted, model)
        start += size


def _run_alone(request: Any, arrays: Mapping[str, Any], model: Model, run: Run) -> Any:
    wanted = _wanted(request, model)
    try:
        return _response(run(arrays, wanted), wanted, model)
    except Exception as error:  # noqa: BLE001 - whatever the model raises is this request's answer
        return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(f"{model.name}: {error}"))


def _response(results: Mapping[str, Any], wanted: Sequence[str], model: Model) -> Any:
    tensors = []
    for name in wanted:
        value = results[name]
        if not isinstance(value, np.ndarray):
            tensors.append(pb_utils.Tensor.from_dlpack(name, value))
            continue
        expected = pb_utils.triton_string_to_numpy(model.outputs[name]["data_type"])
        if value.dtype.kind in "OSU":
            value = to_bytes(value)
        elif value.dtype != expected:
            raise ValueError(f"output {name!r} is {value.dtype}, the configuration says {np.dtype(expected)}")
        if value.ndim == 0:
            value = value.reshape(1)
        tensors.append(pb_utils.Tensor(name, np.ascontiguousarray(value)))
    return pb_utils.InferenceResponse(output_tensors=tensors)


def to_bytes(array: Array) -> Array:
    """Return an array of strings as Triton expects it: objects that are bytes."""
    encoded = [item if isinstance(item, bytes) else str(item).encode() for item in array.reshape(-1)]
    strings = np.empty(len(encoded), dtype=object)
    strings[:] = encoded
    return strings.reshape(array.shape)


def to_text(array: Array) -> Array:
    """Return an array of bytes as text.

    Raises:
        ValueError: The bytes are not valid UTF-8.
    """
    decoded = [item.decode() if isinstance(item, bytes) else str(item) for item in array.reshape(-1)]
    strings = np.empty(len(decoded), dtype=object)
    strings[:] = decoded
    return strings.reshape(array.shape)
