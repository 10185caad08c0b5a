"""The inputs of a request, in the types and shapes of a signature."""

from collections.abc import Iterator, Mapping

import numpy as np

from controlplane.domain.arrays import Array
from controlplane.domain.signature import Signature, TensorSpec
from controlplane.errors import InvalidInputError
from converters.objects import to_array

_DEFAULT_BATCH = 8
"""The maximum batch size of a deployment that does not set it."""


def batches(arrays: Mapping[str, Array], limit: int | None) -> Iterator[Mapping[str, Array]]:
    """Yield the rows of a request in parts that a deployment accepts.

    Args:
        arrays: Arrays with the batch as their first dimension.
        limit: The deployment's maximum batch size; None is the default, 0 turns batching off.
    """
    most = _DEFAULT_BATCH if limit is None else limit
    rows = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
    count = max(rows, default=0)
    if most == 0 or len(rows) != 1 or count <= most:
        yield arrays
        return
    for start in range(0, count, most):
        yield {name: array[start : start + most] for name, array in arrays.items()}


def request_arrays(inputs: object, signature: Signature | None, model: str) -> dict[str, Array]:
    """Return the inputs of a request as arrays of the signature's types.

    Raises:
        InvalidInputError: They do not fit the signature.
    """
    if not isinstance(inputs, Mapping):
        if signature is None or len(signature.inputs) != 1:
            names = ", ".join(spec.name for spec in signature.inputs) if signature else "unknown"
            raise InvalidInputError(f"give the inputs of {model} as a mapping by name; its inputs: {names}")
        inputs = {signature.inputs[0].name: inputs}
    arrays = {str(name): to_array(value) for name, value in inputs.items()}
    if signature is None:
        return arrays
    specs = {spec.name: spec for spec in signature.inputs}
    missing = [spec.name for spec in signature.inputs if not spec.optional and spec.name not in arrays]
    unknown = sorted(set(arrays) - set(specs))
    if missing or unknown:
        wrong = [f"missing: {', '.join(missing)}"] if missing else []
        wrong += [f"unknown: {', '.join(unknown)}"] if unknown else []
        have = ", ".join(map(str, specs.values()))
        raise InvalidInputError(
            f"the inputs of {model} are {have}; {'; '.join(wrong)}", missing=missing, unknown=unknown
        )
    return {name: _fitted(array, specs[name]) for name, array in arrays.items()}


def _fitted(array: Array, spec: TensorSpec) -> Array:
    wanted = spec.dtype.numpy
    if array.dtype != wanted and array.dtype.kind in "fiub":
        if not np.can_cast(array.dtype, wanted, "same_kind"):
            raise InvalidInputError(f"{spec.name} has the type {array.dtype}; the model takes {spec.dtype}")
        array = array.astype(wanted)
    if not spec.accepts(array.shape):
        raise InvalidInputError(f"{spec.name} has the shape {list(array.shape)}; the model takes {spec}")
    return array
