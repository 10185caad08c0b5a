"""Conversion of tensors whose wire shape has one dimension more than the model's signature. Pure.

Triton has no rank-0 tensors. A rank-0 tensor of a signature is configured with ``dims: [1]`` (see
`controlplane.triton.model_config`), and a batched output of one element per row with ``dims: [1]`` reshaped to ``[]``.
So ``()`` is sent as ``(1,)`` and ``(N,)`` as ``(N, 1)``; `from_wire` reverses `to_wire`.
"""

from collections.abc import Mapping
from typing import Any

from controlplane.domain.arrays import Array
from controlplane.triton.model_config import SCALARS_PARAMETER

Config = Mapping[str, Any]
"""A model's configuration, or a part of it, in Triton's JSON form."""


def to_wire(array: Array, spec: Config, config: Config) -> Array:
    """Return an input in its wire shape; an input that already has the wire shape is unchanged.

    Args:
        array: The input in the signature's shape.
        spec: The input's entry in the configuration.
        config: The configuration.
    """
    if _drops_last(spec, config) and array.ndim == _rank(spec, config) - 1:
        return array.reshape((*array.shape, 1))
    return array


def from_wire(array: Array, spec: Config, config: Config) -> Array:
    """Return a received output in the signature's shape."""
    if _drops_last(spec, config) and array.shape[-1:] == (1,):
        return array.reshape(array.shape[:-1])
    return array


def _rank(spec: Config, config: Config) -> int:
    return len(spec.get("dims", ())) + (1 if config.get("max_batch_size", 0) else 0)


def _drops_last(spec: Config, config: Config) -> bool:
    """Return whether the wire shape has one more dimension, of size 1, than the signature."""
    if config.get("max_batch_size", 0):
        return "reshape" in spec and not spec["reshape"].get("shape") and list(spec.get("dims", ())) == [1]
    parameter = config.get("parameters", {}).get(SCALARS_PARAMETER, {})
    return str(spec["name"]) in str(parameter.get("string_value", "")).split("\n")
