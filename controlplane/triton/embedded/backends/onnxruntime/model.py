"""A backend named `onnxruntime` that uses the onnxruntime package, for a Triton without a native one.

It uses the same model repository entry as Triton's own ONNX Runtime backend, and the relevant subset of its parameters
(`intra_op_thread_count`, `inter_op_thread_count`, `execution_mode`, `session.*` entries).
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import onnxruntime
import triton_python_backend_utils as pb_utils
from backend_requests import Model, serve, to_text  # type: ignore[import-not-found]

_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}


class TritonPythonModel:
    """One instance: one process with one session."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the file and compare it with the configuration. An exception is reported to the caller of the load."""
        self._model = Model(args)
        try:
            self._session = onnxruntime.InferenceSession(
                str(self._model.path), _options(self._model), providers=_providers(self._model)
            )
        except Exception as error:  # noqa: BLE001 - ORT's own are not exported
            raise ValueError(f"ONNX Runtime cannot open {self._model.path.name}: {error}") from None
        self._inputs = {tensor.name: tensor for tensor in self._session.get_inputs()}
        _check("input", self._model.inputs, self._inputs)
        _check("output", self._model.outputs, {tensor.name: tensor for tensor in self._session.get_outputs()})

    def execute(self, requests: Sequence[Any]) -> Any:
        """Answer requests."""
        return serve(requests, self._model, self._run)

    def finalize(self) -> None:
        """Free the session's memory."""
        del self._session

    def _run(self, arrays: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
        feed = {}
        for name, array in arrays.items():
            if name in self._model.scalars and array.size == 1:
                array = array.reshape(())
            feed[name] = to_text(array) if array.dtype.kind == "O" else array
        return dict(zip(wanted, self._session.run(list(wanted), feed), strict=True))


def _options(model: Any) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = model.threads("intra")
    options.inter_op_num_threads = model.threads("inter")
    if model.parameters.get("execution_mode") == "1":
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    for name, value in model.parameters.items():
        if name.startswith("session."):
            options.add_session_config_entry(name, value)
    return options


def _providers(model: Any) -> list[Any]:
    if not model.on_gpu:
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pb_utils.Logger.log_warn(f"{model.name}: this onnxruntime has no CUDA; running on the CPU")
        return ["CPUExecutionProvider"]
    return [("CUDAExecutionProvider", {"device_id": model.device_id}), "CPUExecutionProvider"]


def _check(side: str, configured: Mapping[str, Any], actual: Mapping[str, Any]) -> None:
    """Fail the load if configuration and file disagree; the error contains the names."""
    for name, tensor in configured.items():
        if name not in actual:
            raise ValueError(f"the model has no {side} {name!r}; its {side}s: {', '.join(actual)}")
        kind = _TYPES.get(actual[name].type)
        if kind != tensor["data_type"]:
            raise ValueError(
                f"{side} {name!r} is {actual[name].type} in the file, the configuration says {tensor['data_type']}"
            )
