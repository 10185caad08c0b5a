"""The last steps of every conversion to ONNX: opset, precision, names of dimensions, and the file on disk."""

import heapq
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from controlplane.domain.signature import Signature
from controlplane.errors import ConversionFailedError
from converters.onnx_artifact import tensors_of
from converters.options import ConversionOptions

MAX_INLINE_BYTES = 1_900_000_000
"""Larger weights go to a separate file, because one protobuf message holds less than 2 GiB."""
EXTERNAL_DATA_NAME = "model.onnx.data"
BATCH = "batch"
_REDUCE_NOOP_OPSET = 18
"""The opset that added noop_with_empty_axes to ReduceMean and similar operators (ReduceSum has it since 13)."""


def finish_onnx(model: ModelProto, options: ConversionOptions, signature: Signature | None, output: Path) -> None:
    """Apply opset and precision, name the batch dimension, and write the model.

    Args:
        model: The model with all its weights in memory.
        options: Options with the opset and the precision.
        signature: Inputs and outputs; if batched, every first dimension gets the name ``batch``, so that the file
            declares it too.
        output: The file to write; weights that are too large for it go to a file beside it.

    Raises:
        ConversionFailedError: A step is not possible for this model.
    """
    if options.opset is not None:
        model = change_opset(model, options.opset)
    if options.precision == "fp16":
        model = _to_fp16(model)
    elif options.precision == "int8":
        model = _to_int8(model)
    if signature is not None and signature.batched:
        _name_batch(model)
    write_onnx(model, output)


def write_onnx(model: ModelProto, output: Path) -> None:
    """Write a model; weights that are too large for one message go to a file beside it."""
    weights = sum(len(tensor.raw_data) for tensor in tensors_of(model))
    if weights > MAX_INLINE_BYTES:
        onnx.save_model(
            model, output, save_as_external_data=True, all_tensors_to_one_file=True, location=EXTERNAL_DATA_NAME
        )
    else:
        onnx.save_model(model, output)


def change_opset(model: ModelProto, opset: int) -> ModelProto:
    """Return the model in another opset of the standard operators.

    Raises:
        ConversionFailedError: onnx does not support the opset, or cannot adapt an operator.
    """
    current = next((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), 0)
    if current == opset:
        return model
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise ConversionFailedError(
            f"opset {opset} is newer than the newest that onnx {onnx.__version__} supports: {newest}"
        )
    try:
        converted: ModelProto = onnx.version_converter.convert_version(model, opset)
    except (RuntimeError, onnx.version_converter.ConvertError) as error:
        first = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ConversionFailedError(
            f"failed to convert the model from opset {current} to {opset}: {first[:300]}"
        ) from error
    if opset < _REDUCE_NOOP_OPSET:
        _drop_reduce_noop(converted.graph)
    return converted


def _drop_reduce_noop(graph: GraphProto) -> None:
    """Remove the default of an attribute that the version converter (onnx 1.23) fails to remove."""
    for node in graph.node:
        for subgraph in _subgraphs(node):
            _drop_reduce_noop(subgraph)
        if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum":
            for attribute in [a for a in node.attribute if a.name == "noop_with_empty_axes" and a.i == 0]:
                node.attribute.remove(attribute)


def _to_fp16(model: ModelProto) -> ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    # Inputs and outputs keep their types, so that the precision of a version does not affect its clients.
    converted: ModelProto = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=False)
    sort_nodes(converted.graph)
    return converted


def _to_int8(model: ModelProto) -> ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, quantised = (Path(folder) / name for name in ("plain.onnx", "prepared.onnx", "int8.onnx"))
        write_onnx(model, plain)
        try:
            quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        except Exception:  # noqa: BLE001 - an optional step: it makes quantisation see more, nothing depends on it
            prepared = plain
        quantize_dynamic(prepared, quantised, weight_type=QuantType.QInt8)
        result = onnx.load_model(quantised)
        sort_nodes(result.graph)
    if not any(
        t.data_type in {TensorProto.INT8, TensorProto.UINT8} and len(t.dims) > 1 for t in result.graph.initializer
    ):
        raise ConversionFailedError(
            "no part of this model can be quantised dynamically (it has no MatMul, Gemm, Conv, LSTM or attention "
            "with constant weights); use precision fp32 or fp16"
        )
    return result


def sort_nodes(graph: GraphProto) -> None:
    """Sort the nodes of all subgraphs so that each node follows those whose outputs it reads.

    The tools for fp16 and int8 append nodes in any order. A node also reads the outer values that its subgraphs use.
    Nodes keep their order where possible.
    """
    for node in graph.node:
        for subgraph in _subgraphs(node):
            sort_nodes(subgraph)
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    waits = [{makers[name] for name in _reads(node) if name in makers} - {i} for i, node in enumerate(graph.node)]
    followers: dict[int, list[int]] = {}
    for index, needed in enumerate(waits):
        for maker in needed:
            followers.setdefault(maker, []).append(index)
    ready = [index for index, needed in enumerate(waits) if not needed]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        order.append(done := heapq.heappop(ready))
        for index in followers.get(done, ()):
            waits[index].discard(done)
            if not waits[index]:
                heapq.heappush(ready, index)
    if order != list(range(len(graph.node))) and len(order) == len(graph.node):
        nodes = [NodeProto.FromString(graph.node[index].SerializeToString()) for index in order]
        del graph.node[:]
        graph.node.extend(nodes)


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _reads(node: NodeProto) -> set[str]:
    names = set(node.input)
    for graph in _subgraphs(node):
        own = {value.name for value in (*graph.input, *graph.initializer)}
        own |= {name for inner in graph.node for name in inner.output}
        inside = {name for inner in graph.node for name in _reads(inner)} | {value.name for value in graph.output}
        names |= inside - own
    return names - {""}


def _name_batch(model: ModelProto) -> None:
    initializers = {initializer.name for initializer in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.name not in initializers and dims and not (dims[0].HasField("dim_value") and dims[0].dim_value > 0):
            dims[0].dim_param = BATCH
