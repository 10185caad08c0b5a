"""Merges a deployment's settings over the configuration that came with a model directory.

The author's configuration decides everything but what the control plane owns: name, version policy, its parameters, and
the GPUs of the placement. Settings that are given are merged over it; those that contradict it are refused.
"""

import copy
import hashlib
import json
from typing import Any

from controlplane.domain.deployment import DeploymentSettings, InstanceKind, chooses_gpus
from controlplane.domain.manifest import Manifest
from controlplane.domain.model_directory import shared_files
from controlplane.domain.pipelines import ENSEMBLE, with_members
from controlplane.errors import InvalidConfigError
from controlplane.triton.instance_groups import KINDS
from controlplane.triton.model_directory import default_file

FILES_PARAMETER = "tcp_files"
"""Parameter with the digest of the files beside the version folders.

All loaded versions of a model share these files, so versions with different ones are not loaded together.
"""

_SCHEDULERS = {"sequence_batching": "sequence batching", "ensemble_scheduling": "an ensemble"}


def author_config(manifest: Manifest, settings: DeploymentSettings) -> dict[str, Any]:
    """Return the author's configuration with the batch size and the instances of a deployment.

    Raises:
        InvalidConfigError: A setting contradicts the configuration.
    """
    assert manifest.config is not None
    config: dict[str, Any] = copy.deepcopy(manifest.config)
    if default := default_file(config, manifest.backend):
        config.setdefault("default_model_filename", default)
    config["max_batch_size"] = _max_batch_size(config, settings)
    _check_scheduler(config, settings)
    _add_tensors(config, manifest)
    if manifest.backend == ENSEMBLE:
        _check_ensemble(settings)
    elif groups := _instance_groups(config, manifest.backend, settings):
        config["instance_group"] = groups
    if files := shared_files(manifest):
        digests = sorted((path, file.sha256) for path, file in files.items())
        digest = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
        config.setdefault("parameters", {})[FILES_PARAMETER] = {"string_value": digest}
    return with_members(config, manifest.members, settings.members)


def _check_ensemble(settings: DeploymentSettings) -> None:
    """Refuse settings of instances: Triton runs an ensemble without any."""
    given = {
        "instance_count": settings.instance_count != 1,
        "instance_kind": settings.instance_kind is not InstanceKind.AUTO,
        "gpus": bool(settings.gpus),
        "gpu_count": chooses_gpus(settings),
        "warmup": settings.warmup,
        "config_overrides": bool({"instance_group", "instanceGroup"} & settings.config_overrides.keys()),
    }
    for field in (name for name, is_given in given.items() if is_given):
        raise InvalidConfigError(
            f"{field} cannot be set for an ensemble: Triton runs it without instances of its own; set it for its "
            "members",
            field=field,
        )


def _max_batch_size(config: dict[str, Any], settings: DeploymentSettings) -> int:
    own, asked = int(config.get("max_batch_size", 0)), settings.max_batch_size
    if asked is None or asked == own:
        return own
    if not own or not asked:
        meant = "its tensors have no batch dimension" if not own else "its tensors have a batch dimension"
        raise InvalidConfigError(
            f"max_batch_size is {asked}, but the configuration of the version has {own}, so {meant}; "
            + ("use 0" if not own else "use a number from 1"),
            field="max_batch_size",
        )
    return asked


def _check_scheduler(config: dict[str, Any], settings: DeploymentSettings) -> None:
    if settings.dynamic_batching is None:
        return
    for field, what in _SCHEDULERS.items():
        if field in config:
            raise InvalidConfigError(
                f"dynamic_batching contradicts {what} in the configuration of the version: Triton has one scheduler "
                "for a model; remove it",
                field="dynamic_batching",
            )
    if not config["max_batch_size"]:
        raise InvalidConfigError(
            "dynamic_batching needs a max_batch_size above 0, and the configuration of the version has none; remove it",
            field="dynamic_batching",
        )


def _add_tensors(config: dict[str, Any], manifest: Manifest) -> None:
    """Add tensors that the publisher or the model file declares and the configuration leaves to Triton."""
    signature = manifest.signature
    if signature is None:
        return
    for side, specs in (("input", signature.inputs), ("output", signature.outputs)):
        if not config.get(side):
            skipped = 1 if config["max_batch_size"] else 0
            config[side] = [
                {
                    "name": spec.name,
                    "data_type": "TYPE_STRING" if spec.dtype == "BYTES" else f"TYPE_{spec.dtype}",
                    "dims": list(spec.shape[skipped:]),
                }
                for spec in specs
            ]


def _instance_groups(config: dict[str, Any], backend: str, settings: DeploymentSettings) -> list[dict[str, Any]]:
    """Return the instance groups; empty leaves them to Triton."""
    groups = [dict(group) for group in config.get("instance_group", ())]
    given: dict[str, Any] = {}
    if settings.instance_count != 1:
        given["count"] = settings.instance_count
    if settings.instance_kind is not InstanceKind.AUTO:
        given["kind"] = KINDS[settings.instance_kind]
    if settings.gpus:
        given["gpus"] = list(settings.gpus)
    if not groups and backend == "python":
        groups = [{"kind": "KIND_CPU"}]  # what Triton does for this backend; elsewhere a GPU is used if there is one
    if not given:
        return groups
    if len(groups) > 1:
        raise InvalidConfigError(
            f"the configuration of the version has {len(groups)} instance groups, so it is unclear which of them "
            f"{', '.join(given)} changes; give all groups in config_overrides.instance_group",
            field="instance_count",
        )
    group = {**(groups or [{"kind": "KIND_AUTO"}])[0], **given}
    if group.get("kind") == "KIND_CPU":
        group.pop("gpus", None)
    elif settings.gpus:
        group["kind"] = "KIND_GPU"
    return [group]
