"""Rules for TorchScript modules that Triton's own PyTorch backend can run, checked before publishing.

The rules come from ``src/pt/model_state.cc`` and ``src/pt/model_instance_state.cc`` in the repository
triton-inference-server/pytorch_backend (2026; ``src/libtorch.cc`` before). They were read there, not tested by running
the backend:

- The module runs as it was saved. The backend does not call ``eval()`` (it did until server#1345).
- Every argument of ``forward`` is an input: a Tensor or a List[str]; or there is one argument, a Dict[str, Tensor].
- ``forward`` returns a Tensor, a List[str], or a tuple of those. Tensors of rank 0 are rejected.
- Tensors are BOOL, UINT8, INT8 to INT64 or FP16 to FP64.
- Outputs are found by position: ``NAME__0``, ``NAME__1``.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import JsonValue

from controlplane.domain.portability import LIBTORCH_TYPES
from controlplane.domain.signature import DataType, Signature
from converters.runtimes import TorchScriptRuntime

_NUMBERS = {"int", "float", "bool"}
# Operators with a flag that enables training, and the position of the flag among the arguments.
_TRAINING_FLAG = {
    **dict.fromkeys(("aten::dropout", "aten::dropout_", "aten::native_dropout"), 2),
    **dict.fromkeys(("aten::feature_dropout", "aten::alpha_dropout", "aten::feature_alpha_dropout"), 2),
    "aten::rrelu": 3,
    "aten::batch_norm": 5,
}
_CONVERT = "convert this version to torchscript, which wraps it"


def refusal(runtime: TorchScriptRuntime, signature: Signature | None) -> str | None:
    """Return why Triton cannot serve a module, and what to do about it; None if it can.

    Args:
        runtime: The module.
        signature: Inputs and outputs; None if they are unknown.
    """
    problem = module_refusal(runtime)
    if problem is not None:
        return problem
    if signature is None:
        return f"the file does not declare the types and shapes of its inputs and outputs; {what_to_add(runtime)}"
    return _signature_problem(runtime, signature)


def module_refusal(runtime: TorchScriptRuntime) -> str | None:
    """Return why Triton cannot serve a module with any signature; None if it can."""
    return _arguments_problem(runtime) or _returns_problem(runtime)


def forward_types(runtime: TorchScriptRuntime) -> dict[str, JsonValue]:
    """Return the types of a module's arguments and results, for the attributes of its version.

    `controlplane.domain.portability` compares them with what a server's backend passes.
    """
    return {
        "arguments": dict[str, JsonValue](runtime.arguments),
        "returns": [_type_name(kind) for kind in _leaves(runtime)],
    }


def what_to_add(runtime: TorchScriptRuntime) -> str:
    """Return what the publisher must add to make the signature known, with this module's own arguments."""
    names = list(runtime.arguments)
    arrays = ", ".join(f"{name}=…" for name in names)
    inputs = " ".join(f'--input "{name}:{_example(kind)}"' for name, kind in runtime.arguments.items())
    outputs = " ".join(f'--out "OUTPUT__{index}:{_example(str(kind))}"' for index, kind in enumerate(_leaves(runtime)))
    return (
        f"push it again with samples (--samples samples.npz, made with numpy.savez('samples.npz', {arrays})), or with "
        f"a signature of this form, with the model's own types and shapes: {inputs} {outputs}"
    )


def training_parts(module: Any) -> tuple[str, ...]:
    """Return the names of the parts of a module that compute in training mode.

    A scripted module reads the mode of its parts when it runs, so there are none after ``eval()``. A traced module
    contains the mode as a constant.
    """
    graph = module.inlined_graph
    parts = [
        path
        for node in graph.findAllNodes("prim::GetAttr")
        if node.s("name") == "training" and _is_training(module, path := _path(node.inputsAt(0)))
    ]
    for kind, position in _TRAINING_FLAG.items():
        parts += [
            kind.removeprefix("aten::")
            for node in graph.findAllNodes(kind)
            if node.inputsAt(position).toIValue() is True
        ]
    return tuple(dict.fromkeys(part or "forward" for part in parts))


def training_note(parts: Sequence[str]) -> str:
    """Return the warning about a module that was saved in training mode."""
    shown = ", ".join(parts[:5]) + (f" and {len(parts) - 5} more" if len(parts) > 5 else "")
    return (
        "the module was saved in training mode, and Triton's PyTorch backend does not change that; these parts "
        f"run in training mode: {shown}. Golden samples are recorded in that mode. For inference, call .eval() "
        "before torch.jit.script or torch.jit.trace, save the module, and push it again"
    )


def _arguments_problem(runtime: TorchScriptRuntime) -> str | None:
    if not runtime.arguments:
        return "forward has no arguments, but a model in Triton needs an input; wrap it in a module that takes a tensor"
    if runtime.dictionary_argument is not None:
        return None
    wrong = {name: kind for name, kind in runtime.arguments.items() if kind not in {"Tensor", "List[str]"}}
    if not wrong:
        return None
    named = ", ".join(f"{name} ({kind})" for name, kind in wrong.items())
    advice = _CONVERT if set(wrong.values()) <= _NUMBERS else "wrap it in a module whose forward takes only tensors"
    return f"forward has arguments that are not tensors, which Triton's PyTorch backend cannot pass: {named}; {advice}"


def _returns_problem(runtime: TorchScriptRuntime) -> str | None:
    leaves = _leaves(runtime)
    if leaves and all(_is_answer(kind) for kind in leaves):
        return None
    example = {
        "DictType": "return the values as a tuple, for example (out['a'], out['b'])",
        "ListType": "return a tuple, for example (out[0], out[1])",
    }.get(runtime.returns.kind(), "return a tuple of tensors, with numbers as torch.tensor([number])")
    return (
        f"forward returns {_type_name(runtime.returns)}, but Triton's PyTorch backend supports only a Tensor, a "
        f"List[str] or a tuple of those; {_CONVERT}, or {example}"
    )


def _signature_problem(runtime: TorchScriptRuntime, signature: Signature) -> str | None:
    missing = [] if runtime.dictionary_argument is not None else list(runtime.arguments)[len(signature.inputs) :]
    if missing:
        return (
            f"forward has {len(runtime.arguments)} arguments, but the signature has {len(signature.inputs)} "
            f"inputs, and Triton's PyTorch backend uses no default values; give {', '.join(missing)} as inputs, or "
            "wrap the module"
        )
    for spec in (*signature.inputs, *signature.outputs):
        if spec.dtype not in LIBTORCH_TYPES:
            return f"{spec} has a type that Triton's PyTorch backend does not support; cast it in the module"
        if spec.dtype is DataType.BYTES and len(spec.shape) != 1:
            return f"{spec}: Triton's PyTorch backend supports strings only with one dimension; flatten it"
    scalars = [spec for spec in signature.outputs if not spec.shape]
    if scalars:
        return (
            f"the output {scalars[0]} has no dimensions, which Triton's PyTorch backend rejects; {_CONVERT}, or "
            "return it as tensor.reshape(1)"
        )
    return None


def _leaves(runtime: TorchScriptRuntime) -> list[Any]:
    """Return the types that forward returns: those of a tuple's elements, or the single type."""
    returns = runtime.returns
    return list(returns.elements()) if returns.kind() == "TupleType" else [returns]


def _is_answer(kind: Any) -> bool:
    strings = kind.kind() == "ListType" and kind.getElementType().kind() == "StringType"
    return bool(strings or kind.kind() == "TensorType")


def _type_name(kind: Any) -> str:
    return str(getattr(kind, "annotation_str", kind))


def _example(kind: str) -> str:
    return "BYTES[-1]" if kind == "List[str]" else "FP32[-1,3]"


def _path(value: Any) -> str:
    """Return the dotted name of the submodule that a value of the graph refers to."""
    names: list[str] = []
    while value.node().kind() == "prim::GetAttr":
        names.append(value.node().s("name"))
        value = value.node().inputsAt(0)
    return ".".join(reversed(names))


def _is_training(module: Any, path: str) -> bool:
    part = module
    for name in filter(None, path.split(".")):
        part = getattr(part, name, part)
    return bool(getattr(part, "training", False))
