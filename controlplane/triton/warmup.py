"""Warm-up requests made of a golden sample: Triton runs them inside the load, before the first real request.

Real inputs rather than zeros: a model may branch on a value, or refuse zero (a sampling rate, say). Triton never looks
at what comes out; the proof does.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from controlplane.domain.arrays import Array
from controlplane.domain.samples import Sample
from controlplane.domain.signature import Signature
from controlplane.triton.wire import serialise

FOLDER = "warmup"
"""Where Triton looks for the files that a warm-up request names, in the model's folder."""


def warmup_requests(signature: Signature, sample: Sample, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Build `model_warmup`; its data lies in the files that `warmup_files` returns."""
    batched = config["max_batch_size"] > 0
    inputs: dict[str, Any] = {}
    tensors = {str(tensor["name"]): tensor for tensor in config["input"]}
    for spec in signature.inputs:
        row = _row(sample.inputs[spec.name], batched=batched)
        inputs[spec.name] = {
            "data_type": tensors[spec.name]["data_type"],
            "dims": list(row.shape) or [1],
            "input_data_file": _file_name(serialise(row, spec.dtype)),
        }
    # For a model that does not batch it must be 1, too; 0 would mean no warm-up.
    return [{"name": "golden", "batch_size": 1, "inputs": inputs}]


def warmup_files(signature: Signature, sample: Sample, config: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the data of `warmup_requests` by file name, to be staged under `FOLDER`; empty without a warm-up."""
    if not config.get("model_warmup"):
        return {}
    batched = config.get("max_batch_size", 0) > 0
    contents = [serialise(_row(sample.inputs[spec.name], batched=batched), spec.dtype) for spec in signature.inputs]
    return {_file_name(content): content for content in contents}


def warmup_names(config: Mapping[str, Any]) -> set[str]:
    """Return the names of the files that a configuration's warm-up requests read."""
    requests = config.get("model_warmup") or ()
    inputs = [tensor for request in requests for tensor in request.get("inputs", {}).values()]
    return {str(tensor["input_data_file"]) for tensor in inputs if "input_data_file" in tensor}


def _row(array: Array, *, batched: bool) -> Array:
    return np.asarray(array[0]) if batched else np.asarray(array)


def _file_name(content: bytes) -> str:
    """Named by content: two versions, or a changed sample, never overwrite each other's."""
    return hashlib.sha256(content).hexdigest()[:32]
