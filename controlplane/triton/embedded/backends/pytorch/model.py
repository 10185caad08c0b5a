"""A backend named `pytorch` over torch.jit, for a Triton that has no native one.

It takes the same model repository entry as Triton's own LibTorch backend and follows its rules for names: inputs all
named ``<name>__<position>``, or all named as forward's arguments, or else in the configuration's order; outputs named
``<name>__<position>``, or by the keys where the model returns a dictionary.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from backend_requests import Model, serve, to_text

_POSITION = re.compile(r".*__(\d+)")


class TritonPythonModel:
    """One instance: one process with one module."""

    def initialize(self, args):
        """Open the file. What is raised here is what the load's caller reads."""
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
            self._module = torch.jit.load(str(self._model.path), map_location=self._device).eval()
        except Exception as error:
            raise ValueError(f"TorchScript cannot open {self._model.path.name}: {_first_line(error)}") from None
        self._arguments = list(self._module.forward.schema.arguments)[1:]
        self._order = self._input_order()
        self._positions = {name: _position(name) for name in self._model.outputs}

    def execute(self, requests):
        """Answer requests."""
        return serve(requests, self._model, self._run)

    def finalize(self):
        """Let the module's memory go."""
        self._module = None

    def _input_order(self):
        """Input names by argument position."""
        names = list(self._model.inputs)
        positions = {name: _position(name) for name in names}
        arguments = [argument.name for argument in self._arguments]
        if None not in positions.values():
            order = sorted(names, key=lambda name: positions[name])
        elif set(names) <= set(arguments):
            return [name if name in names else None for name in arguments]
        else:
            order = names
        if len(order) > len(arguments):
            raise ValueError(
                f"the configuration has {len(order)} inputs ({', '.join(order)}), forward takes {len(arguments)} "
                f"({', '.join(arguments)})"
            )
        return order

    def _run(self, arrays, wanted):
        arguments, named = [], {}
        for name, argument in zip(self._order, self._arguments):
            if name is None or name not in arrays:
                continue
            value = self._argument(name, arrays[name], argument)
            # After an argument that was left out, the rest can only go by name.
            if len(arguments) == self._arguments.index(argument):
                arguments.append(value)
            else:
                named[argument.name] = value
        with torch.inference_mode():
            try:
                result = self._module(*arguments, **named)
            except Exception as error:
                raise ValueError(_last_line(error)) from None
        return self._outputs(result, wanted)

    def _argument(self, name, array, argument):
        kind = str(argument.type)
        if isinstance(array, np.ndarray) and array.dtype.kind == "O":
            texts = to_text(array).reshape(-1).tolist()
            return texts[0] if kind == "str" else texts
        if not isinstance(array, np.ndarray):
            tensor = torch.utils.dlpack.from_dlpack(array.to_dlpack()).clone()
        else:
            # Triton's buffer is read-only; a module may write to what it gets.
            tensor = torch.from_numpy(np.array(array))
        if name in self._model.scalars and tensor.numel() == 1:
            tensor = tensor.reshape(())
        if kind in ("int", "float", "bool", "number"):
            return tensor.item()
        return tensor.to(self._device)

    def _outputs(self, result, wanted):
        if isinstance(result, dict):
            return {name: _to_array(result[name], name) for name in wanted}
        if isinstance(result, torch.Tensor) or (isinstance(result, list) and result and isinstance(result[0], str)):
            result = (result,)
        outputs = {}
        for name in wanted:
            position = self._positions[name]
            if position is None:
                position = list(self._model.outputs).index(name)
            if position >= len(result):
                raise ValueError(f"output {name!r}: the model returns {len(result)} values")
            outputs[name] = _to_array(result[position], name)
        return outputs


def _to_array(value, name):
    if isinstance(value, (list, str)):
        return np.array([value] if isinstance(value, str) else value, dtype=object)
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    value = value.detach().cpu().contiguous()
    if value.dtype is torch.bfloat16:
        return value
    return value.numpy()


def _position(name):
    match = _POSITION.fullmatch(name)
    return int(match[1]) if match else None


def _first_line(error):
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _last_line(error):
    """TorchScript's errors are a traceback of the script; the cause is its last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
