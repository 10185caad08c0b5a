"""A backend named `pytorch` that uses torch.jit, for a Triton without a native one.

It uses the same model repository entry as Triton's own LibTorch backend and follows its rules
(``src/pt/model_instance_state.cc`` in triton-inference-server/pytorch_backend):

- Inputs are all named after forward's arguments, or all ``<name>__<position>``, or else in the configuration's order;
  if forward's only argument is a dictionary, its keys are the inputs' names. Outputs are named ``<name>__<position>``.
- The module runs in the mode in which it was saved; ``eval()`` is not called.
- forward returns a Tensor, a List[str] or a tuple of those. Tensors without dimensions are refused as outputs and
  cannot occur as inputs, because Triton has no such tensors.

It is more lenient in one way: it also serves arguments that are numbers, and omitted arguments that have a default
value.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from backend_requests import Model, serve, to_text  # type: ignore[import-not-found]

_POSITION = re.compile(r".*__(\d+)")


class TritonPythonModel:
    """One instance: one process with one module."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the file. An exception is reported to the caller of the load."""
        self._model = Model(args)
        torch.set_num_threads(self._model.threads("intra"))
        torch.set_num_interop_threads(self._model.threads("inter"))
        self._device = torch.device("cpu")
        if self._model.on_gpu:
            if torch.cuda.is_available():
                self._device = torch.device("cuda", self._model.device_id)
            else:
                pb_utils.Logger.log_warn(f"{self._model.name}: this torch has no CUDA; running on the CPU")
        try:
            load: Any = torch.jit.load
            self._module: Any = load(str(self._model.path), map_location=self._device)
        except Exception as error:  # noqa: BLE001 - RuntimeError, but also what a broken zip raises
            raise ValueError(f"TorchScript cannot open {self._model.path.name}: {_first_line(error)}") from None
        self._arguments = list(self._module.forward.schema.arguments)[1:]
        self._takes_dictionary = [str(argument.type) for argument in self._arguments] == ["Dict[str, Tensor]"]
        self._order = self._input_order()
        self._positions = {name: _position(name) for name in self._model.outputs}

    def execute(self, requests: Sequence[Any]) -> Any:
        """Answer requests."""
        return serve(requests, self._model, self._run)

    def finalize(self) -> None:
        """Free the module's memory."""
        del self._module

    def _input_order(self) -> list[str | None]:
        """Return input names by argument position."""
        names = list(self._model.inputs)
        if self._takes_dictionary:
            return list(names)
        positions = {name: _position(name) for name in names}
        arguments = [argument.name for argument in self._arguments]
        if None not in positions.values():
            order: list[str | None] = sorted(names, key=lambda name: positions[name] or 0)
        elif set(names) <= set(arguments):
            return [name if name in names else None for name in arguments]
        else:
            order = list(names)
        if len(order) > len(arguments):
            raise ValueError(
                f"the configuration has {len(order)} inputs ({', '.join(names)}), forward takes {len(arguments)} "
                f"({', '.join(arguments)})"
            )
        return order

    def _run(self, arrays: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
        arguments, named = self._call(arrays)
        with torch.inference_mode():
            try:
                result = self._module(*arguments, **named)
            except Exception as error:  # noqa: BLE001 - whatever the model raises
                raise ValueError(_last_line(error)) from None
        return self._outputs(result, wanted)

    def _call(self, arrays: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the positional and named arguments of forward."""
        arguments: list[Any] = []
        named: dict[str, Any] = {}
        if self._takes_dictionary:
            return [{name: self._tensor(array) for name, array in arrays.items()}], {}
        # forward may have more arguments than the model has inputs; those use their defaults.
        for position, (name, argument) in enumerate(zip(self._order, self._arguments, strict=False)):
            if name is None or name not in arrays:
                continue
            value = self._argument(arrays[name], argument)
            # After an omitted argument, the remaining ones can only be passed by name.
            if len(arguments) == position:
                arguments.append(value)
            else:
                named[argument.name] = value
        return arguments, named

    def _argument(self, array: Any, argument: Any) -> Any:
        kind = str(argument.type)
        if isinstance(array, np.ndarray) and array.dtype.kind == "O":
            texts = to_text(array).reshape(-1).tolist()
            return texts[0] if kind == "str" else texts
        tensor = self._tensor(array)
        return tensor.item() if kind in ("int", "float", "bool", "number") else tensor

    def _tensor(self, array: Any) -> Any:
        if not isinstance(array, np.ndarray):
            tensor = torch.utils.dlpack.from_dlpack(array.to_dlpack()).clone()
        else:
            # Triton's buffer is read-only, but a module may write to its arguments.
            tensor = torch.from_numpy(np.array(array))
        return tensor.to(self._device)

    def _outputs(self, result: Any, wanted: Sequence[str]) -> dict[str, Any]:
        if isinstance(result, torch.Tensor) or _is_texts(result):
            result = (result,)
        if not isinstance(result, tuple):
            raise TypeError(_answers_with(f"a {type(result).__name__}"))
        outputs = {}
        for name in wanted:
            position = self._positions[name]
            if position is None:
                position = list(self._model.outputs).index(name)
            if position >= len(result):
                raise ValueError(f"output {name!r}: the model returns {len(result)} values")
            value = result[position]
            if not isinstance(value, torch.Tensor) and not _is_texts(value):
                raise TypeError(_answers_with(f"a {type(value).__name__} at position {position}"))
            if isinstance(value, torch.Tensor) and value.ndim == 0:
                raise ValueError(f"output {name!r} is a tensor without dimensions; return it as tensor.reshape(1)")
            outputs[name] = _to_array(value)
        return outputs


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(element, str) for element in value)


def _answers_with(what: str) -> str:
    return (
        f"the model returns {what}, but a PyTorch model in Triton must return a Tensor, a List[str] or a tuple of "
        "those; wrap it"
    )


def _to_array(value: Any) -> Any:
    if isinstance(value, list):
        return np.array(value, dtype=object)
    value = value.detach().cpu().contiguous()
    if value.dtype is torch.bfloat16:
        return value
    return value.numpy()


def _position(name: str) -> int | None:
    match = _POSITION.fullmatch(name)
    return int(match[1]) if match else None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _last_line(error: Exception) -> str:
    """Return the cause of a TorchScript error, which is the last line of its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
