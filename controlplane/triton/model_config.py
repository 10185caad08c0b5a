"""Builds the configuration with which a model is loaded, from its signature and the deployment's settings."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.manifest import Format, Manifest
from controlplane.domain.pipelines import with_members
from controlplane.domain.samples import Sample
from controlplane.domain.signature import DataType, Signature, TensorSpec
from controlplane.errors import InvalidConfigError
from controlplane.triton.author_config import author_config
from controlplane.triton.config_json import (
    DIGEST_PARAMETER,
    METADATA_PREFIX,
    RESERVED_PARAMETERS,
    canonical,
    config_digest,
    json_to_message,
    merge,
    message_to_json,
    to_pbtxt,
)
from controlplane.triton.instance_groups import KINDS
from controlplane.triton.warmup import warmup_requests

__all__ = [
    "DIGEST_PARAMETER",
    "SCALARS_PARAMETER",
    "build_config",
    "config_digest",
    "data_type_of",
    "message_to_json",
    "to_pbtxt",
    "triton_type",
]

SCALARS_PARAMETER = "tcp_scalars"
"""Parameter with the names, one a line, of the tensors that are rank 0 in the model and ``[1]`` for Triton."""

METADATA_PARAMETER = "metadata"
"""Parameter with all of a model file's metadata as one JSON object of strings.

Ultralytics' Triton client reads it as a Python literal; JSON without ASCII escapes is one.
"""
_METADATA_DOCUMENT_MAX_BYTES = 128 * 1024

DEFAULT_MAX_BATCH_SIZE = 8
# Decided by the control plane, from the manifest or from how it uses the model.
_FIXED = ("name", "backend", "platform", "runtime", "version_policy", "default_model_filename", "ensemble_scheduling")
_TORCH_NAME = re.compile(r".*__(\d+)")


def build_config(
    triton_name: str,
    manifest: Manifest,
    settings: DeploymentSettings,
    versions: Sequence[int],
    *,
    samples: Sequence[Sample] | Sample | None = None,
) -> dict[str, Any]:
    """Return a model's whole configuration, in Triton's JSON form.

    Args:
        triton_name: The model's name in Triton.
        manifest: Format and signature.
        settings: The settings of the deployment.
        versions: The versions to load, listed individually: with ``all`` one broken folder makes the load fail.
        samples: Golden samples, or only the first; the first is the warm-up request if the settings ask for one.

    Raises:
        InvalidConfigError: The settings contradict the signature or each other, or the format cannot be served.
    """
    samples = (samples,) if isinstance(samples, Sample) else samples or ()
    if not manifest.format.runs:
        raise InvalidConfigError(f"Triton cannot run the format {manifest.format}; convert it to onnx or torchscript")
    if manifest.unservable is not None:
        raise InvalidConfigError(f"Triton cannot serve this version: {manifest.unservable}")
    if not versions or min(versions) < 1:
        raise InvalidConfigError(f"versions must be positive numbers, at least one, not {list(versions)}")
    if manifest.config is not None:
        config = author_config(manifest, settings)
    else:
        with_members({}, (), settings.members)  # refuses any
        config = _generated(manifest, settings, samples)
    config["name"] = triton_name
    config["version_policy"] = {"specific": {"versions": sorted(set(versions))}}
    config["parameters"] = config.get("parameters", {}) | _parameters(settings)
    if manifest.rows_independent is False and dynamically_batched(settings):
        raise InvalidConfigError(
            "dynamic_batching combines requests, but the rows of a request to this version are not independent; "
            "remove it",
            field="dynamic_batching",
        )
    if settings.dynamic_batching is not None:
        batching = _dynamic_batching(settings, config["max_batch_size"])
        own = config.get("dynamic_batching", {})
        config["dynamic_batching"] = own | {key: value for key, value in batching.items() if value or key not in own}
    if settings.warmup:
        _add_warmup(config, manifest, settings, samples)
    overrides = canonical(settings.config_overrides)
    _check_overrides(overrides, config)
    config = message_to_json(json_to_message(merge(config, overrides)))
    config.setdefault("parameters", {})[DIGEST_PARAMETER] = {"string_value": config_digest(config)}
    return config


def _generated(manifest: Manifest, settings: DeploymentSettings, samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the configuration of a version whose format has none of its own."""
    signature = manifest.signature
    if signature is None:
        raise InvalidConfigError("the version has no signature, so no configuration can be built for it")
    _check_signature(signature, manifest.format)
    max_batch_size = _max_batch_size(signature, settings, samples)
    return {
        "backend": manifest.format.backend,
        "default_model_filename": manifest.format.file_name,
        "max_batch_size": max_batch_size,
        "input": [_tensor(spec, batched=max_batch_size > 0) for spec in signature.inputs],
        "output": [_tensor(spec, batched=max_batch_size > 0) for spec in signature.outputs],
        "instance_group": [
            {"kind": KINDS[settings.instance_kind], "count": settings.instance_count, "gpus": list(settings.gpus)}
        ],
        "parameters": _metadata(manifest) | _scalars(signature),
    }


def _add_warmup(
    config: dict[str, Any], manifest: Manifest, settings: DeploymentSettings, samples: Sequence[Sample]
) -> None:
    if "model_warmup" in settings.config_overrides or "modelWarmup" in settings.config_overrides:
        raise InvalidConfigError(
            "config_overrides.model_warmup contradicts warmup: true; give one of them", field="model_warmup"
        )
    if "model_warmup" in config:
        raise InvalidConfigError(
            "warmup: true contradicts model_warmup in the configuration of the version; remove it", field="warmup"
        )
    if samples and manifest.signature is not None:
        config["model_warmup"] = warmup_requests(manifest.signature, samples[0], config)


def dynamically_batched(settings: DeploymentSettings) -> bool:
    """Return whether the settings make Triton batch requests of several clients together."""
    return settings.dynamic_batching is not None or not settings.config_overrides.keys().isdisjoint(
        ("dynamic_batching", "dynamicBatching")
    )


def triton_type(dtype: DataType) -> str:
    """Return Triton's name of a type in a model configuration."""
    return "TYPE_STRING" if dtype is DataType.BYTES else f"TYPE_{dtype}"


def data_type_of(name: str) -> DataType:
    """Return the type that a model configuration calls ``name``."""
    return DataType.BYTES if name == "TYPE_STRING" else DataType(name.removeprefix("TYPE_"))


def _check_signature(signature: Signature, kind: Format) -> None:
    for spec in (*signature.inputs, *signature.outputs):
        if 0 in spec.shape:
            raise InvalidConfigError(f"Triton does not support dimensions of size 0, as in {spec}", field=spec.name)
    if kind is Format.TORCHSCRIPT:
        # LibTorch has no output names: Triton derives the position from the name.
        positions = [_TORCH_NAME.fullmatch(spec.name) for spec in signature.outputs]
        numbers = [int(match[1]) if match else -1 for match in positions]
        if sorted(numbers) != list(range(len(numbers))):
            raise InvalidConfigError(
                "outputs of a TorchScript model must be named <name>__<position>, as OUTPUT__0, OUTPUT__1; "
                f"these are {', '.join(spec.name for spec in signature.outputs)}",
                field="output",
            )


def batching_obstacle(signature: Signature) -> str | None:
    """Return why Triton cannot batch requests for a model with this signature; None if it can.

    An input of one element per row (``[N]``) would need ``dims: [1]`` with an empty reshape. A request with zero rows
    then crashes the whole server, because Triton's Python backend (2.51) reads the first dimension of a shape that has
    none. Without Triton's batching such a model accepts any number of rows in one request, including zero.
    """
    if not signature.batched:
        return "the model's signature has no batch dimension"
    for spec in signature.inputs:
        if len(spec.shape) == 1:
            return f"input {spec.name!r} has one element per row, which Triton's batching does not handle safely"
    return None


def _max_batch_size(signature: Signature, settings: DeploymentSettings, samples: Sequence[Sample]) -> int:
    obstacle = batching_obstacle(signature)
    if settings.max_batch_size is None:
        if obstacle is not None:
            if settings.dynamic_batching is not None:
                raise InvalidConfigError(
                    f"dynamic_batching cannot be used: {obstacle}; remove it", field="dynamic_batching"
                )
            return 0
        # The golden samples must fit, otherwise no version could pass its proof.
        sizes: list[int] = [array.shape[0] for sample in samples for array in sample.inputs.values() if array.ndim]
        return max([DEFAULT_MAX_BATCH_SIZE, *sizes])
    if settings.max_batch_size > 0 and obstacle is not None:
        raise InvalidConfigError(
            f"max_batch_size is {settings.max_batch_size}, but {obstacle}; use 0", field="max_batch_size"
        )
    return settings.max_batch_size


def _tensor(spec: TensorSpec, *, batched: bool) -> dict[str, Any]:
    dims = list(spec.shape[1:] if batched else spec.shape)
    tensor: dict[str, Any] = {"name": spec.name, "data_type": triton_type(spec.dtype), "dims": dims or [1]}
    if not dims and batched:
        # One element per row of an output (see `batching_obstacle` for inputs). Triton does not allow empty dims, but
        # reshapes [1] to []; the model returns (N,).
        tensor["reshape"] = {}
    # Without batching, Triton refuses an empty reshape ("scalar tensors are not supported"). So a rank-0 tensor of the
    # model is sent as [1], and the backend converts it; SCALARS_PARAMETER lists these tensors.
    return tensor


def _metadata(manifest: Manifest) -> dict[str, Any]:
    """Return the metadata of the model's exporter, under names that no backend reads."""
    metadata = manifest.attributes.get("metadata")
    texts = (
        {name: value for name, value in metadata.items() if isinstance(value, str)}
        if isinstance(metadata, dict)
        else {}
    )
    parameters = {f"{METADATA_PREFIX}{name}": {"string_value": value} for name, value in texts.items()}
    document = json.dumps(texts, ensure_ascii=False)
    if texts and len(document.encode()) <= _METADATA_DOCUMENT_MAX_BYTES:
        parameters[METADATA_PARAMETER] = {"string_value": document}
    return parameters


def _parameters(settings: DeploymentSettings) -> dict[str, Any]:
    for name in settings.parameters:
        if name.startswith(RESERVED_PARAMETERS):
            raise InvalidConfigError(
                f"parameter {name!r}: names that start with {RESERVED_PARAMETERS!r} are reserved for the control plane",
                field=f"parameters.{name}",
            )
    return {name: {"string_value": value} for name, value in settings.parameters.items()}


def _scalars(signature: Signature) -> dict[str, Any]:
    scalars = [spec.name for spec in (*signature.inputs, *signature.outputs) if not spec.shape]
    return {SCALARS_PARAMETER: {"string_value": "\n".join(dict.fromkeys(scalars))}} if scalars else {}


def _dynamic_batching(settings: DeploymentSettings, max_batch_size: int) -> dict[str, Any]:
    batching = settings.dynamic_batching
    assert batching is not None
    wrong = [size for size in batching.preferred_batch_size if not 1 <= size <= max_batch_size]
    if wrong:
        raise InvalidConfigError(
            f"preferred_batch_size {wrong[0]} is not between 1 and max_batch_size, which is {max_batch_size}",
            field="dynamic_batching.preferred_batch_size",
        )
    return {
        "preferred_batch_size": list(batching.preferred_batch_size),
        "max_queue_delay_microseconds": batching.max_queue_delay_microseconds,
    }


def _check_overrides(overrides: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse overrides that contradict the signature or the control plane's own decisions."""
    for name in _FIXED:
        if name in overrides and overrides[name] != config.get(name):
            raise InvalidConfigError(
                f"config_overrides.{name} cannot be set: the control plane determines it", field=name
            )
    size = overrides.get("max_batch_size", config["max_batch_size"])
    if size != config["max_batch_size"]:
        raise InvalidConfigError(
            f"config_overrides.max_batch_size is {size}, but the settings and the signature give "
            f"{config['max_batch_size']}; set max_batch_size in the settings",
            field="max_batch_size",
        )
    for side in ("input", "output"):
        for item in overrides.get(side, ()):
            _check_tensor(side, item, config.get(side, ()))
    for name in overrides.get("parameters", {}):
        if name.startswith(RESERVED_PARAMETERS):
            raise InvalidConfigError(
                f"config_overrides.parameters.{name}: names that start with {RESERVED_PARAMETERS!r} are reserved "
                "for the control plane",
                field=f"parameters.{name}",
            )
    if "dynamic_batching" in overrides and not size:
        raise InvalidConfigError(
            "config_overrides.dynamic_batching needs a max_batch_size above 0", field="dynamic_batching"
        )
    for one, other in (("sequence_batching", "dynamic_batching"), ("dynamic_batching", "sequence_batching")):
        if one in overrides and other in config:
            raise InvalidConfigError(
                f"config_overrides.{one} contradicts {other}: Triton has one scheduler for a model", field=one
            )
    if _decoupled(overrides) and not _decoupled(config):
        raise InvalidConfigError(
            "config_overrides.model_transaction_policy.decoupled: decoupled models are published with their own "
            "config.pbtxt, which states it",
            field="model_transaction_policy",
        )


def _decoupled(config: Mapping[str, Any]) -> bool:
    return bool(config.get("model_transaction_policy", {}).get("decoupled"))


def _check_tensor(side: str, item: Mapping[str, Any], generated: Sequence[Mapping[str, Any]]) -> None:
    name = item.get("name")
    spec = next((spec for spec in generated if spec["name"] == name), None)
    if spec is None:
        known = ", ".join(str(spec["name"]) for spec in generated)
        raise InvalidConfigError(
            f"config_overrides.{side}: the signature has no {side} {name!r}, only {known}", field=side
        )
    for key in ("data_type", "dims", "reshape"):
        if key in item and _plain(item[key]) != _plain(spec.get(key)):
            raise InvalidConfigError(
                f"config_overrides.{side} {name!r}: {key} is {item[key]}, the signature says {spec.get(key)}",
                field=f"{side}.{name}.{key}",
            )


def _plain(value: Any) -> Any:
    """Normalize values that JSON can write in two ways: 64-bit integers as strings, and empty lists."""
    if isinstance(value, list):
        return [int(item) if isinstance(item, str) and item.lstrip("-").isdigit() else item for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item != []}
    return value
