"""Parsing of parts of v2 gRPC requests, with protobuf's own parser."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from controlplane.errors import InvalidInputError

PARAMETERS = 4
"""Field number of the parameters in a ``ModelInferRequest``."""


def parameters_of(message: bytes) -> Mapping[str, str]:
    """Return the parameters of a ``ModelInferRequest`` that are strings or integers.

    Args:
        message: The request, or only its `PARAMETERS` fields.

    Raises:
        InvalidInputError: The parameters cannot be read.
    """
    return {
        key: str(value)
        for key, value in all_parameters_of(message).items()
        if isinstance(value, int | str) and not isinstance(value, bool)
    }


def all_parameters_of(message: bytes) -> dict[str, Any]:
    """Return all parameters of a ``ModelInferRequest``, by name.

    Args:
        message: The request, or only its `PARAMETERS` fields.

    Raises:
        InvalidInputError: The parameters cannot be read.
    """
    try:
        found = service_pb2.ModelInferRequest.FromString(message).parameters
    except DecodeError:
        raise InvalidInputError("the request's parameters are not those of a ModelInferRequest") from None
    chosen = {key: value.WhichOneof("parameter_choice") for key, value in found.items()}
    return {key: getattr(found[key], choice) for key, choice in chosen.items() if choice}
