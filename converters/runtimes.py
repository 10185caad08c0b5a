"""Runtimes that run servable artifacts on the CPU as Triton's backends do: ONNX Runtime and TorchScript."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from controlplane.domain.arrays import Array
from controlplane.domain.manifest import Format
from controlplane.domain.samples import Tensors
from controlplane.domain.signature import DataType, Signature
from controlplane.errors import InvalidArtifactError, InvalidInputError

_TELLING = re.compile(r"([\w.]+\.)?\w*(Error|Exception): \S")

THREADS = 2
"""Threads of one runtime, so that a conversion does not occupy the whole machine."""


Run = Callable[[Tensors], dict[str, Array]]
"""Runs a model on the inputs of one request; raises `RunError`."""


class RunError(Exception):
    """The model could not be run on these inputs; the message is the runtime's own, on one line."""


class Runnable(Protocol):
    """A model that can answer requests."""

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request and return the outputs by name, in the model's order.

        Raises:
            RunError: The runtime rejected the inputs or failed.
        """


def open_runtime(
    path: Path,
    format: Format,  # noqa: A002 - the name in the API
    signature: Signature | None,
) -> Runnable:
    """Load a servable model file.

    Raises:
        InvalidArtifactError: The runtime cannot load the file, or Triton does not serve its format.
    """
    if format is Format.ONNX:
        return OnnxRuntime(path)
    if format is Format.TORCHSCRIPT:
        return TorchScriptRuntime(path, signature)
    raise InvalidArtifactError(f"Triton can serve ONNX and TorchScript; convert the {format.value} model first")


class OnnxRuntime:
    """An ONNX model that runs on onnxruntime's CPU provider."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise InvalidArtifactError(f"onnxruntime cannot load {path.name}: {_reason(error, path)}") from error
        self._inputs = {entry.name: entry.type for entry in self._session.get_inputs()}
        self._outputs = [entry.name for entry in self._session.get_outputs()]

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """See `converters.base.SourceModel.run`."""
        feeds = {name: _to_ort(array, self._inputs.get(name, "")) for name, array in inputs.items()}
        try:
            answers = self._session.run(self._outputs, feeds)
        except Exception as error:
            raise RunError(one_line(error)) from error
        return {name: _from_ort(answer, name) for name, answer in zip(self._outputs, answers, strict=True)}


def _reason(error: BaseException, path: Path) -> str:
    """Return why ONNX Runtime rejected a file, without the path of its folder, and a fix if one is known."""
    reason = one_line(error).replace(str(path), path.name)
    if "construct locale" in str(error):
        reason += (
            "; the model's StringNormalizer needs this locale of the operating system on every machine that runs "
            "the model; install it, or set the operator's attribute locale to 'C'"
        )
    return reason


def _to_ort(array: Array, type_name: str) -> Array:
    if type_name == "tensor(string)":
        texts = [e.decode("utf-8", "replace") if isinstance(e, bytes) else str(e) for e in array.reshape(-1)]
        text_array = np.empty(len(texts), dtype=object)
        text_array[:] = texts
        return text_array.reshape(array.shape)
    return np.ascontiguousarray(array).reshape(array.shape)


def _from_ort(answer: Any, name: str) -> Array:
    if not isinstance(answer, np.ndarray):
        raise RunError(f"output {name!r} is a {type(answer).__name__}, not a tensor")
    return as_bytes(answer) if answer.dtype.kind in "OUS" else answer


def as_bytes(array: Array) -> Array:
    """Return an array of strings as the protocol represents them: objects of type bytes."""
    raw = np.empty(array.size, dtype=object)
    raw[:] = [e if isinstance(e, bytes) else str(e).encode() for e in array.reshape(-1)]
    return raw.reshape(array.shape)


class TorchScriptRuntime:
    """A TorchScript module on the CPU, run as Triton's PyTorch backend runs it.

    That backend does not call ``eval()``: a module that was saved in training mode runs in training mode. Tensors
    without dimensions reach the module with the shape ``[1]``, because Triton has no tensors without dimensions.

    Args:
        path: The file.
        signature: Names for the outputs; None uses those that the module returns.
        evaluate: For a conversion: run the module in evaluation mode and with unchanged tensors, as its author would.

    Attributes:
        module: The module.
        arguments: Names and types of ``forward``'s arguments, in order.
        returns: The return type of ``forward``, an object of torch.
    """

    def __init__(self, path: Path, signature: Signature | None, *, evaluate: bool = False) -> None:
        import torch

        torch.set_num_threads(THREADS)
        self._evaluate = evaluate
        try:
            self.select(torch.jit.load(str(path), map_location="cpu"))  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError, OSError, AttributeError) as error:
            raise InvalidArtifactError(f"torch cannot load {path.name}: {one_line(error)}") from error
        self._names = _by_position([spec.name for spec in signature.outputs]) if signature else None

    def select(self, module: Any) -> None:
        """Use this scripted module for all further runs: the whole module or a submodule."""
        schema = module._c._get_method("forward").schema  # no public API gives the types
        self.module = module.eval() if self._evaluate else module
        self.arguments = {argument.name: str(argument.type) for argument in schema.arguments[1:]}
        self.required = [a.name for a in schema.arguments[1:] if not a.has_default_value()]
        self.returns: Any = schema.returns[0].type

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """See `converters.base.SourceModel.run`."""
        return name_outputs(self.answer(inputs), self._names)

    def answer(self, inputs: Tensors) -> Any:
        """Return the module's return value unchanged.

        Raises:
            RunError: The module failed.
        """
        if not self._evaluate:
            inputs = {name: array.reshape(array.shape or (1,)) for name, array in inputs.items()}
        if self.dictionary_argument is not None:
            return call_module(self.module, [{name: to_torch(array) for name, array in inputs.items()}])
        return call_module(self.module, [_to_torch(array, kind) for array, kind in self._in_order(inputs)])

    def _in_order(self, inputs: Tensors) -> list[tuple[Array, str]]:
        """Match tensors with arguments by Triton's rules: by ``forward``'s names, or by ``NAME__index``."""
        kinds = list(self.arguments.items())
        if set(inputs) <= set(self.arguments):
            missing = [name for name in self.required if name not in inputs]
            if missing:
                raise RunError(f"forward needs the argument {missing[0]!r}")
            return [(inputs[name], kind) for name, kind in kinds if name in inputs]
        placed: dict[int, Array] = {}
        for position, (name, array) in enumerate(inputs.items()):
            _, mark, index = name.rpartition("__")
            placed[int(index) if mark and index.isdigit() else position] = array
        if sorted(placed) != list(range(len(inputs))) or len(placed) > len(kinds):
            raise RunError(f"the inputs {sorted(inputs)} do not match forward's arguments {list(self.arguments)}")
        return [(placed[position], kinds[position][1]) for position in sorted(placed)]

    @property
    def scalar_arguments(self) -> dict[str, str]:
        """Arguments that are numbers instead of tensors, with types; Triton's PyTorch backend cannot pass them."""
        return {name: kind for name, kind in self.arguments.items() if kind in {"int", "float", "bool"}}

    @property
    def dictionary_argument(self) -> str | None:
        """The name of the only argument if it is a dictionary, whose keys are the model's inputs."""
        return next(iter(self.arguments)) if list(self.arguments.values()) == ["Dict[str, Tensor]"] else None


def _by_position(names: list[str]) -> list[str]:
    """Sort output names into the order in which the module returns them, given by the index in each name."""
    positions = [name.rpartition("__")[2] for name in names]
    if sorted(positions) != sorted(str(number) for number in range(len(names))):
        return names
    return [name for _, name in sorted(zip(map(int, positions), names, strict=True))]


def call_torch(module: Any, values: Sequence[Any], names: Sequence[str] | None) -> dict[str, Array]:
    """Call a torch module without gradients and return its outputs as arrays.

    Args:
        module: The module.
        values: Its positional arguments.
        names: Names for the outputs; None uses a dict's keys, or ``OUTPUT__0`` and so on.

    Raises:
        RunError: The module failed, or its return value cannot be sent as tensors.
    """
    return name_outputs(call_module(module, values), names)


def call_module(module: Any, values: Sequence[Any]) -> Any:
    """Call a torch module without gradients.

    Raises:
        RunError: The module failed.
    """
    import torch

    try:
        with torch.inference_mode():
            return module(*values)
    except Exception as error:
        raise RunError(one_line(error)) from error


def name_outputs(answer: Any, names: Sequence[str] | None) -> dict[str, Array]:
    """Return a module's answer as arrays; see `call_torch`.

    Raises:
        RunError: The answer cannot be sent as tensors, or the number of outputs differs from the number of names.
    """
    flat = flatten_outputs(answer)
    keys = list(names) if names is not None else [key or f"OUTPUT__{index}" for index, (key, _) in enumerate(flat)]
    if len(set(keys)) < len(keys):  # two dictionaries with the same key
        keys = [f"OUTPUT__{index}" for index in range(len(flat))]
    if len(keys) != len(flat):
        raise RunError(f"the model returns {len(flat)} outputs, but {len(keys)} names are given: {keys}")
    return {key: _from_torch(value, key) for key, (_, value) in zip(keys, flat, strict=True)}


def flatten_outputs(answer: Any) -> list[tuple[str | None, Any]]:
    """Return a module's outputs in order, with keys if it returned a mapping, and without None values.

    A list of strings is one output.
    """
    if is_texts(answer):
        return [(None, answer)]
    if isinstance(answer, Mapping):
        pairs: list[tuple[str | None, Any]] = [(str(key), value) for key, value in answer.items()]
    elif isinstance(answer, tuple | list):
        pairs = [(None, value) for value in answer]
    else:
        return [(None, answer)]
    flat: list[tuple[str | None, Any]] = []
    for key, value in pairs:
        if isinstance(value, tuple | list | Mapping) and not is_texts(value):
            inner = flatten_outputs(value)
            flat += [(key if len(inner) == 1 else f"{key}_{i}" if key else k, v) for i, (k, v) in enumerate(inner)]
        elif value is not None:
            flat.append((key, value))
    return flat


def is_texts(value: Any) -> bool:
    """Return whether a value is a list of strings, which Triton's PyTorch backend sends as one output."""
    return isinstance(value, list) and bool(value) and all(isinstance(element, str) for element in value)


def to_torch(array: Array, dtype: DataType | None = None) -> Any:
    """Return an array as a torch tensor with its own copy of the memory."""
    import torch

    if array.dtype.kind in "OUS":
        raise RunError("torch does not support string tensors")
    tensor = torch.from_numpy(np.array(array, order="C", copy=True))
    return tensor.to(torch.bfloat16) if dtype is DataType.BF16 else tensor


def _to_torch(array: Array, kind: str) -> Any:
    scalar = {"int": int, "float": float, "bool": bool}.get(kind)
    if scalar is not None:
        if array.size != 1:
            raise RunError(f"forward needs a single {kind}, not an array of shape {list(array.shape)}")
        return scalar(array.reshape(-1)[0])
    if kind == "List[str]":
        return [e.decode() if isinstance(e, bytes) else str(e) for e in array.reshape(-1)]
    return to_torch(array)


def _from_torch(value: Any, name: str) -> Array:
    import torch

    if is_texts(value):
        return as_bytes(np.asarray(value, dtype=object))
    if isinstance(value, bool | int | float):
        value = torch.tensor(value)
    if not isinstance(value, torch.Tensor):
        raise RunError(f"output {name!r} is a {type(value).__name__}, not a tensor")
    value = value.detach().cpu()
    if value.dtype is torch.bfloat16:
        value = value.float()
    try:
        array: Array = value.numpy().copy()
        DataType.of(array)
    except (TypeError, ValueError) as error:
        raise RunError(
            f"output {name!r} has the type {value.dtype}, which Triton's protocol does not support"
        ) from error
    return array


def one_line(error: BaseException) -> str:
    """Return the informative line of a library's error: the last one that names an exception, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    telling = [line for line in lines if _TELLING.match(line)]
    return (telling[-1] if telling else lines[0])[:500]


def check_inputs(inputs: Tensors, signature: Signature, number: int) -> None:
    """Compare a given sample's inputs with the signature.

    Raises:
        InvalidInputError: A name, type or shape does not match.
    """
    if set(inputs) != {spec.name for spec in signature.inputs}:
        raise InvalidInputError(
            f"sample {number} has the inputs {sorted(inputs)}, but the signature has "
            f"{sorted(spec.name for spec in signature.inputs)}"
        )
    for spec in signature.inputs:
        array = inputs[spec.name]
        dtype = DataType.of(array)
        if not spec.accepts(array.shape) or (dtype is not spec.dtype and spec.dtype is not DataType.BF16):
            raise InvalidInputError(
                f"sample {number}: input {spec.name!r} is {dtype}{list(array.shape)}, but the signature requires {spec}"
            )
