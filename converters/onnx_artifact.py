"""Reading of ONNX files without running them: the opset, the inputs and outputs, and the location of the weights."""

import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto
from pydantic import JsonValue

from controlplane.errors import InvalidArtifactError
from converters.onnx_signature import Declared, declared, without_shape

MAX_PROTOBUF_BYTES = 2**31 - 1
"""Protobuf's own limit for one message; larger models keep their weights in external data."""

MAX_METADATA_BYTES = 64 * 1024
"""Limit on the total size of the kept metadata_props of a file, because they are sent with every load."""

MAX_METADATA_ENTRIES = 256
"""Limit on the number of kept metadata_props of a file."""

# Shapes and indices are tensors too, in 64-bit integers; weights are floats, or 8-bit integers once quantised.
_WEIGHT_TYPES = {
    *(TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16),
    *(TensorProto.INT8, TensorProto.UINT8),
}


@dataclass(frozen=True, slots=True)
class OnnxFacts:
    """Facts that an ONNX file declares about itself.

    Attributes:
        declared: Inputs and outputs, and whether Triton can serve them.
        attributes: Opset, IR version, producer, number of weights, external files, names of dynamic dimensions.
    """

    declared: Declared
    attributes: dict[str, JsonValue]


def inspect_onnx(path: Path, root: Path) -> OnnxFacts:
    """Check an ONNX file and return the facts that it declares.

    Args:
        path: The model file.
        root: The artifact's folder, which must contain all external data.

    Raises:
        InvalidArtifactError: The file is not an ONNX model or is truncated, or its external data is missing, too short
            or outside the artifact.
    """
    model = read_model(path)
    external = check_external_data(model, path, root)
    _check(model, path, external)
    found = declared(model)
    facts = _attributes(model, external)
    facts["dimensions"] = {name: list[JsonValue](sizes) for name, sizes in found.dimensions.items()}
    metadata, left_out = _metadata(model)
    if metadata:
        facts["metadata"] = metadata
    if left_out:
        facts["metadata_left_out"] = left_out
        found = replace(found, hints=(*found.hints, _left_out_hint(left_out, len(model.metadata_props))))
    if found.vocabularies:
        facts["vocabularies"] = dict(found.vocabularies)
    return OnnxFacts(found, facts)


def _metadata(model: ModelProto) -> tuple[dict[str, JsonValue], int]:
    """Return the exporter's metadata (class names, strides), and how many of its entries are left out.

    Entries are left out that are not text, or exceed `MAX_METADATA_ENTRIES` or `MAX_METADATA_BYTES`.
    """
    kept: dict[str, JsonValue] = {}
    room = MAX_METADATA_BYTES
    left_out = 0
    for entry in model.metadata_props:
        key, value = entry.key, entry.value
        text = isinstance(key, str) and isinstance(value, str) and key != "" and key.isprintable()
        size = len(key.encode()) + len(value.encode()) if text else 0
        if not text or size > room or len(kept) == MAX_METADATA_ENTRIES:
            left_out += 1
            continue
        room -= size
        kept[key] = value
    return kept, left_out


def _left_out_hint(left_out: int, entries: int) -> str:
    return (
        f"{left_out} of the file's {entries} metadata_props are left out of the manifest and of Triton's parameters, "
        f"because they are not text or exceed {MAX_METADATA_ENTRIES} entries or {MAX_METADATA_BYTES // 1024} KiB in "
        "all; they stay in the file"
    )


def read_model(path: Path) -> ModelProto:
    """Parse the file without reading its external data.

    Raises:
        InvalidArtifactError: The file is not ONNX, or is truncated.
    """
    size = path.stat().st_size
    if size > MAX_PROTOBUF_BYTES:
        raise InvalidArtifactError(
            f"{path.name} has {size} bytes, but an ONNX file cannot be larger than 2 GiB; save its weights as "
            "external data"
        )
    model = ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, ValueError, RuntimeError) as error:
        raise InvalidArtifactError(
            f"{path.name} cannot be parsed: it is not an ONNX file, or it is truncated"
        ) from error
    _check_names(model, path)
    return model


def _check_names(model: ModelProto, path: Path) -> None:
    """Reject names that are not text; protobuf's upb returns strings that are not UTF-8 as bytes."""
    values = (*model.graph.input, *model.graph.output)
    names: list[object] = [model.producer_name, model.producer_version, *(entry.domain for entry in model.opset_import)]
    names += [value.name for value in values]
    names += [dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim]
    for name in names:
        if not isinstance(name, str):
            raise InvalidArtifactError(
                f"{path.name} is damaged: it contains the name {name!r}, which is not UTF-8 text"
            )


def check_external_data(model: ModelProto, path: Path, root: Path) -> dict[str, int]:
    """Check that every external-data reference stays inside the artifact and inside its file.

    Returns:
        Size in bytes of each external file, by its location.

    Raises:
        InvalidArtifactError: A location is absolute or points outside the artifact (also through a symbolic link), or
            its file is missing or shorter than the tensor needs.
    """
    folder = path.parent
    inside = root.resolve()
    sizes: dict[str, int] = {}
    for tensor in tensors_of(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        _check_location(location, tensor, path)
        if location not in sizes:
            file = folder / location
            try:
                resolved = file.resolve(strict=True)
            except OSError as error:
                raise InvalidArtifactError(
                    f"{path.name}: the external data {location!r} of tensor {tensor.name!r} is not in the "
                    "artifact; give the folder that contains both"
                ) from error
            if not resolved.is_relative_to(inside) or not resolved.is_file():
                raise InvalidArtifactError(
                    f"{path.name}: the external data {location!r} of tensor {tensor.name!r} is outside the artifact"
                )
            sizes[location] = resolved.stat().st_size
        try:
            offset, length = int(entries.get("offset") or 0), int(entries.get("length") or 0)
        except ValueError as error:
            raise InvalidArtifactError(
                f"{path.name}: tensor {tensor.name!r} has a malformed external offset"
            ) from error
        if offset < 0 or length < 0 or offset + length > sizes[location]:
            raise InvalidArtifactError(
                f"{path.name}: tensor {tensor.name!r} needs the bytes {offset} to {offset + length} of "
                f"{location!r}, which has only {sizes[location]} bytes: the file is truncated"
            )
    return sizes


def _check_location(location: str, tensor: TensorProto, path: Path) -> None:
    pure = PurePosixPath(location)
    if not location or pure.is_absolute() or "\\" in location or "\0" in location or ".." in pure.parts:
        raise InvalidArtifactError(
            f"{path.name}: the external data {location[:120]!r} of tensor {tensor.name!r} is outside the artifact"
        )


def load_model(path: Path, root: Path) -> ModelProto:
    """Read a model with all its weights.

    This function does not use ``onnx.load_model``, which rejects external data that has a second hard link: artifacts
    are assembled from links into the blob cache. It checks itself that the data lies inside the artifact.

    Args:
        path: The model file.
        root: The artifact's folder, which must contain all external data.

    Raises:
        InvalidArtifactError: In the same cases as for `read_model` and `check_external_data`.
    """
    model = read_model(path)
    check_external_data(model, path, root)
    for tensor in tensors_of(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        with (path.parent / entries["location"]).open("rb") as file:
            file.seek(int(entries.get("offset") or 0))
            tensor.raw_data = file.read(int(entries["length"]) if entries.get("length") else -1)
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]
    return model


def _check(model: ModelProto, path: Path, external: Mapping[str, int]) -> None:
    checked = _with_stand_in_shapes(model)
    try:
        if external:
            _check_beside_stand_ins(path, external, checked if checked is not model else None)
        else:
            onnx.checker.check_model(checked)
    except (onnx.checker.ValidationError, RuntimeError, ValueError, TypeError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        raise InvalidArtifactError(
            f"{path.name} is not a valid ONNX model, or it is truncated: {first[:300]}"
        ) from error


def _with_stand_in_shapes(model: ModelProto) -> ModelProto:
    """Return a copy in which every tensor has a shape, because onnx's checker requires one (ONNX Runtime does not)."""
    if not any(without_shape(model.graph)):
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    for value in without_shape(copy.graph):
        value.type.tensor_type.shape.SetInParent()
    return copy


def _check_beside_stand_ins(path: Path, external: Mapping[str, int], changed: ModelProto | None) -> None:
    """Run onnx's checker with sparse files of the right size in place of the external data.

    The checker requires the files but does not read them. It rejects files with a second hard link, which the files of
    an artifact have, because they are linked from the blob cache. `check_external_data` has checked the real files.
    """
    with tempfile.TemporaryDirectory(prefix="onnx-check-") as name:
        folder = Path(name)
        for location, size in external.items():
            stand_in = folder / location
            stand_in.parent.mkdir(parents=True, exist_ok=True)
            with stand_in.open("ab") as file:
                file.truncate(size)
        # Only a path works for models over 2 GiB; the name is one that no external data has.
        link = folder / f"{uuid.uuid4().hex}.onnx"
        if changed is None:
            link.symlink_to(path.absolute())
        else:
            link.write_bytes(changed.SerializeToString())
        onnx.checker.check_model(os.fspath(link))


def tensors_of(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor of a model: initializers and attributes, in all subgraphs and functions."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)
    for training in model.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g)
            for graph in attribute.graphs:
                yield from _graph_tensors(graph)


def _attributes(model: ModelProto, external: dict[str, int]) -> dict[str, JsonValue]:
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    parameters = 0
    for tensor in tensors_of(model):
        if tensor.data_type not in _WEIGHT_TYPES:
            continue
        count = 1
        for size in tensor.dims:
            count *= size
        parameters += max(count, 0)
    facts: dict[str, JsonValue] = {
        "opset": opsets.get("ai.onnx", 0),
        "opsets": dict(opsets),
        "ir_version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "parameters": parameters,
        "nodes": len(model.graph.node),
        "external_data": dict(external),
    }
    if any(node.op_type.startswith("DynamicQuantize") for node in model.graph.node):
        facts["dynamic_quantisation"] = True
    return facts
