"""The inputs and outputs that an ONNX graph declares, and whether Triton can serve them. The model is not run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from controlplane.domain.signature import DYNAMIC, NAME_MAX, DataType, Signature, TensorSpec

MAX_INFERENCE_BYTES = 256 * 1024**2
"""Size limit for shape inference, which copies the model."""

DATA_TYPES: dict[int, DataType] = {
    TensorProto.BOOL: DataType.BOOL,
    TensorProto.UINT8: DataType.UINT8,
    TensorProto.UINT16: DataType.UINT16,
    TensorProto.UINT32: DataType.UINT32,
    TensorProto.UINT64: DataType.UINT64,
    TensorProto.INT8: DataType.INT8,
    TensorProto.INT16: DataType.INT16,
    TensorProto.INT32: DataType.INT32,
    TensorProto.INT64: DataType.INT64,
    TensorProto.FLOAT16: DataType.FP16,
    TensorProto.BFLOAT16: DataType.BF16,
    TensorProto.FLOAT: DataType.FP32,
    TensorProto.DOUBLE: DataType.FP64,
    TensorProto.STRING: DataType.BYTES,
}

# Operators that pass indices on unchanged.
_PASSING = {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand"}
_INDEXING = {"Gather", "GatherElements", "GatherND", "ScatterElements", "Scatter", "ScatterND"}
_HINT_NO_BATCH = (
    "the first dimensions in the file have no common name, so they may not be one batch dimension and Triton will "
    "not batch requests; if they are, give a signature with batched true"
)


@dataclass(frozen=True, slots=True)
class Declared:
    """The inputs and outputs that a graph declares.

    Attributes:
        inputs: The inputs; None if one is not a tensor, or has no known type or rank.
        signature: Inputs and outputs; None if one of them is unknown.
        unservable: Why Triton cannot serve the model with any signature; None if no reason is known.
        hints: Advice for the publisher.
        dimensions: Names of dimensions by tensor, for tensors that have named dimensions.
        vocabularies: Number of table entries by integer input, for inputs that select entries of a table.
    """

    inputs: tuple[TensorSpec, ...] | None
    signature: Signature | None
    unservable: str | None
    hints: tuple[str, ...]
    dimensions: dict[str, list[str | None]]
    vocabularies: dict[str, int]


class _UnknownError(Exception):
    """The file does not declare enough about a tensor; the message says what is missing and what to do."""


def declared(model: ModelProto) -> Declared:
    """Return what a checked model declares."""
    names = {initializer.name for initializer in model.graph.initializer}
    names |= {initializer.values.name for initializer in model.graph.sparse_initializer}
    inputs = [value for value in model.graph.input if value.name not in names]
    inferred = _with_shapes(model)
    outputs = list(inferred.output)
    dimensions: dict[str, list[str | None]] = {
        value.name: [dim.dim_param or None for dim in value.type.tensor_type.shape.dim]
        for value in (*inputs, *outputs)
        if any(dim.dim_param for dim in value.type.tensor_type.shape.dim)
    }
    vocabularies = _vocabularies(inferred, {value.name for value in inputs})
    unservable = _obstacle(inputs, outputs)
    known: tuple[TensorSpec, ...] | None = None
    try:
        known = tuple(_spec(value, "input") for value in inputs)
        signature = Signature(
            inputs=known,
            outputs=tuple(_spec(value, "output") for value in outputs),
            batched=_one_batch_dimension((*inputs, *outputs)),
        )
    except _UnknownError as error:
        hint = () if unservable is not None else (str(error),)
        return Declared(known, None, unservable, hint, dimensions, vocabularies)
    except ValueError:  # from pydantic: no inputs, or a duplicate name; `unservable` explains the problem
        return Declared(None, None, unservable, (), dimensions, vocabularies)
    unnamed = not signature.batched and all(spec.shape[:1] == (DYNAMIC,) for spec in signature.inputs)
    named = all(dimensions.get(spec.name, [None])[0] for spec in signature.inputs)
    hints = (_HINT_NO_BATCH,) if unnamed and not named else ()
    return Declared(known, signature, unservable, hints, dimensions, vocabularies)


def _obstacle(inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]) -> str | None:
    """Return why Triton cannot serve these tensors, and what to do; None if it can."""
    for kind, values in (("input", inputs), ("output", outputs)):
        if not values:
            return f"the model has no {kind}s, but a served model needs at least one"
        for value in values:
            if (reason := _value_obstacle(value, kind)) is not None:
                return reason
        seen: set[str] = set()
        for value in values:
            if not value.name or value.name in seen:
                return f"the model has two {kind}s named {value.name[:80]!r}; give each a unique name"
            seen.add(value.name)
    return None


def _value_obstacle(value: ValueInfoProto, kind: str) -> str | None:
    name = f"{kind} {value.name[:80]!r}"
    if len(value.name) > NAME_MAX:
        return f"the name of {name} has {len(value.name)} characters; the limit is {NAME_MAX}; rename it"
    what = value.type.WhichOneof("value")
    if what == "sequence_type" and value.type.sequence_type.elem_type.HasField("map_type"):
        return (
            f"{name} is a list of dictionaries (scikit-learn converters write it, as ZipMap), but Triton supports "
            "only tensors; convert the model with zipmap=False, or publish the scikit-learn model and convert it "
            "here"
        )
    if what == "sequence_type":
        return (
            f"{name} is a sequence, but Triton supports only tensors; export the model with one tensor "
            "(ConcatFromSequence joins them) or one output for each element"
        )
    if what == "optional_type":
        return f"{name} is optional, but Triton supports only tensors; export the model with an ordinary tensor"
    if what != "tensor_type":
        kind_name = (what or "untyped value").removesuffix("_type").replace("_", " ")
        return f"{name} is a {kind_name}, but Triton supports only dense tensors; export the model with a dense tensor"
    element = value.type.tensor_type.elem_type
    if element == TensorProto.BFLOAT16:
        return (
            f"{name} has the element type BFLOAT16, which neither Triton's ONNX Runtime backend nor the embedded "
            "server supports for inputs and outputs; cast them to FLOAT inside the model (weights may stay "
            "BFLOAT16)"
        )
    if element not in DATA_TYPES:
        type_name = _type_name(element)
        return (
            f"{name} has the element type {type_name}, which Triton's protocol does not support; cast inputs and "
            "outputs to FLOAT inside the model"
        )
    return None


def _type_name(element: int) -> str:
    try:
        return str(TensorProto.DataType.Name(element))
    except ValueError:
        return f"number {element}"


def _spec(value: ValueInfoProto, kind: str) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = DATA_TYPES.get(tensor.elem_type)
    if dtype is None or not value.name or len(value.name) > NAME_MAX or not value.type.HasField("tensor_type"):
        raise _UnknownError(f"{kind} {value.name[:80]!r} cannot be described as a Triton tensor")
    if not tensor.HasField("shape"):
        if kind == "output":
            raise _UnknownError(f"output {value.name!r} has no shape in the file; it is inferred by running the model")
        raise _UnknownError(
            f"input {value.name!r} has no shape in the file; give the signature, for example --input "
            f"'{value.name}:{dtype}[-1,3]' and --out for each output (-1 is a size that each request chooses), or "
            "--samples with inputs to infer it from"
        )
    return TensorSpec(name=value.name, dtype=dtype, shape=tuple(_size(dim) for dim in tensor.shape.dim))


def _size(dim: Any) -> int:
    # 0 and negative sizes stand for "unknown" in files of older exporters.
    return int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value > 0 else DYNAMIC


def _one_batch_dimension(values: tuple[ValueInfoProto, ...]) -> bool:
    """Return whether the first dimensions of all tensors have the same name, and no other dimension has it."""
    shapes = [[dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in values]
    firsts = {shape[0] if shape else "" for shape in shapes}
    others = {name for shape in shapes for name in shape[1:]}
    return len(firsts) == 1 and "" not in firsts and not firsts & others


def _with_shapes(model: ModelProto) -> GraphProto:
    """Return the graph, with inferred shapes for the outputs that declare none."""
    if not any(
        value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")
        for value in model.graph.output
    ):
        return model.graph
    if model.ByteSize() > MAX_INFERENCE_BYTES:
        return model.graph
    try:
        inferred: GraphProto = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return model.graph
    # Declared shapes take precedence; inference only fills in missing ones.
    for stated, value in zip(model.graph.output, inferred.output, strict=True):
        if stated.type.tensor_type.HasField("shape"):
            value.CopyFrom(stated)
    return inferred


def without_shape(graph: GraphProto) -> Iterable[ValueInfoProto]:
    """Yield the tensors of a graph and its subgraphs that have no shape."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            yield value
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from without_shape(inner)


def _vocabularies(graph: GraphProto, inputs: set[str]) -> dict[str, int]:
    """Return, by integer input, the number of entries of the smallest table that the input selects from."""
    sizes = _static_shapes(graph)
    makers = {name: node for node in graph.node for name in node.output}
    found: dict[str, int] = {}
    for node in graph.node:
        if node.op_type not in _INDEXING or len(node.input) < 2:
            continue
        table = sizes.get(node.input[0])
        source = _origin(node.input[1], makers)
        if not table or source not in inputs:
            continue
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        entries = min(table) if node.op_type.endswith("ND") else table[axis] if -len(table) <= axis < len(table) else 0
        if entries > 0:
            found[source] = min(entries, found.get(source, entries))
    return found


def _origin(name: str, makers: Mapping[str, NodeProto]) -> str:
    """Follow a value back through operators that pass it on unchanged."""
    for _ in range(len(makers) + 1):
        node = makers.get(name)
        if node is None or node.op_type not in _PASSING or not node.input:
            return name
        name = node.input[0]
    return name


def _static_shapes(graph: GraphProto) -> dict[str, list[int]]:
    """Return the fixed shapes by tensor name."""
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            shapes[node.output[0]] = list(node.attribute[0].t.dims)
    for value in (*graph.input, *graph.value_info):
        sizes = [_size(dim) for dim in value.type.tensor_type.shape.dim]
        if sizes and DYNAMIC not in sizes:
            shapes.setdefault(value.name, sizes)
    return shapes
