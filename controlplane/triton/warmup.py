"""Warm-up requests made from a golden sample: Triton runs them during the load, before the first real request.

They use real inputs rather than zeros, because a model may branch on a value or refuse zero (a sampling rate, for
example). Triton ignores the outputs; the proof compares them.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from controlplane.domain.arrays import Array
from controlplane.domain.samples import Sample
from controlplane.domain.signature import Signature
from controlplane.triton.wire import serialise

FOLDER = "warmup"
"""Folder in the model's folder where Triton finds the files that a warm-up request names."""

_NAME = "golden"
_FILE = re.compile(r"[0-9a-f]{32}")


def warmup_requests(signature: Signature, sample: Sample, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Build `model_warmup`; its data is in the files that `warmup_files` returns."""
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
    # 1 is also required for a model without batching; 0 would disable the warm-up.
    return [{"name": _NAME, "batch_size": 1, "inputs": inputs}]


def warmup_files(signature: Signature, sample: Sample, config: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the data of `warmup_requests` by file name, to be staged under `FOLDER`; empty without a warm-up."""
    if not warmup_names(config):
        return {}
    batched = config.get("max_batch_size", 0) > 0
    contents = [serialise(_row(sample.inputs[spec.name], batched=batched), spec.dtype) for spec in signature.inputs]
    return {_file_name(content): content for content in contents}


def warmup_names(config: Mapping[str, Any]) -> set[str]:
    """Return the names of the files that a golden sample's warm-up request reads; an author's own are not included."""
    requests = [request for request in config.get("model_warmup") or () if request.get("name") == _NAME]
    inputs = [tensor for request in requests for tensor in request.get("inputs", {}).values()]
    return {name for tensor in inputs if _FILE.fullmatch(name := str(tensor.get("input_data_file", "")))}


def _row(array: Array, *, batched: bool) -> Array:
    return np.asarray(array[0]) if batched else np.asarray(array)


def _file_name(content: bytes) -> str:
    """Return a name derived from the content, so that versions and samples never overwrite each other's files."""
    return hashlib.sha256(content).hexdigest()[:32]
