"""Conversion of numpy arrays to v2 tensors and back, in the shapes of a model's signature."""

from collections.abc import Sequence

import numpy as np
from tritonclient.grpc import service_pb2

from controlplane.domain.arrays import Array
from controlplane.domain.samples import Tensors
from controlplane.domain.signature import DataType
from controlplane.errors import InferenceError
from controlplane.triton.model_config import data_type_of
from controlplane.triton.shapes import Config, from_wire, to_wire
from controlplane.triton.wire import deserialise, serialise


def to_request(
    name: str, version: int | None, inputs: Tensors, outputs: Sequence[str] | None, config: Config
) -> service_pb2.ModelInferRequest:
    """Build a request.

    Args:
        name: The model's name in Triton.
        version: The version; None uses the highest loaded version.
        inputs: Arrays by input name, in the signature's shapes.
        outputs: The requested outputs; None requests all.
        config: The model's configuration, in Triton's JSON form.

    Raises:
        InferenceError: The model has no such input, or an array cannot be sent as its type.
    """
    specs = {str(spec["name"]): spec for spec in config.get("input", ())}
    request = service_pb2.ModelInferRequest(model_name=name, model_version="" if version is None else str(version))
    for output in outputs or ():
        request.outputs.add(name=output)
    for tensor, array in inputs.items():
        spec = specs.get(tensor)
        if spec is None:
            raise InferenceError(
                f"{name} has no input {tensor!r}; its inputs: {', '.join(specs) or 'none'}", model=name, input=tensor
            )
        _add_input(request, tensor, np.asarray(array), spec, config)
    return request


def from_response(response: service_pb2.ModelInferResponse, config: Config) -> dict[str, Array]:
    """Read a response's tensors, in the signature's shapes."""
    specs = {str(spec["name"]): spec for spec in config.get("output", ())}
    answer: dict[str, Array] = {}
    for position, output in enumerate(response.outputs):
        # An output without elements may arrive without contents.
        raw = response.raw_output_contents[position] if position < len(response.raw_output_contents) else b""
        array = deserialise(raw, DataType(output.datatype)).reshape(tuple(output.shape))
        spec = specs.get(output.name)
        answer[output.name] = array if spec is None else from_wire(array, spec, config)
    return answer


def _add_input(request: service_pb2.ModelInferRequest, name: str, array: Array, spec: Config, config: Config) -> None:
    datatype = data_type_of(str(spec["data_type"]))
    if datatype is DataType.BYTES:
        if array.dtype.kind not in "OSU":
            raise InferenceError(f"input {name!r} takes strings (BYTES), not {array.dtype}", input=name)
    elif array.dtype != datatype.numpy:
        raise InferenceError(f"input {name!r} takes {datatype}, not {array.dtype}", input=name)
    array = to_wire(array, spec, config)
    request.inputs.add(name=name, datatype=str(datatype), shape=list(array.shape))
    request.raw_input_contents.append(serialise(array, datatype))
