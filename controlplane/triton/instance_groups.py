"""The GPUs of a model's instances: written into the configuration of a load, and read back. Pure.

One configuration is built for all servers. If a model's assignment on a server names GPUs, each load there specifies
them (``instance_group { kind: KIND_GPU gpus: [1] }``). Without them, Triton starts ``count`` instances on *every* GPU
that it sees. The requested GPUs are also stored in a parameter, because Triton fills in instance groups on its own.

GPUs are numbers as in ``instance_group.gpus``; the empty tuple is the host, None leaves the choice to Triton.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from controlplane.domain.deployment import InstanceKind
from controlplane.domain.pipelines import is_ensemble

Gpus = tuple[int, ...]

GPUS_PARAMETER = "tcp_gpus"
"""Parameter with the GPUs that a load requested; not part of the configuration's digest."""

KINDS = {InstanceKind.AUTO: "KIND_AUTO", InstanceKind.CPU: "KIND_CPU", InstanceKind.GPU: "KIND_GPU"}

_HOST = "host"
_CPU, _GPU, _AUTO = "KIND_CPU", "KIND_GPU", "KIND_AUTO"


def named_gpus(config: Mapping[str, Any]) -> Gpus:
    """Return the GPUs that a user's configuration names; empty if it names none."""
    return tuple(sorted({int(gpu) for group in _groups(config) for gpu in group.get("gpus", ())}))


def wants_gpu(config: Mapping[str, Any]) -> bool:
    """Return whether the configuration cannot run without a GPU."""
    return any(group.get("kind") == _GPU or group.get("gpus") for group in _groups(config))


def may_use_gpu(config: Mapping[str, Any]) -> bool:
    """Return whether any instance runs on a GPU if one is available."""
    return any(group.get("kind", _AUTO) != _CPU for group in _groups(config))


def asked_gpus(config: Mapping[str, Any], place: Gpus | None) -> Gpus | None:
    """Return the GPUs that a load of this configuration requests; None if it leaves the configuration unchanged.

    Args:
        config: The configuration for all servers.
        place: The numbers of the GPUs that the model is assigned to.
    """
    return place if any(_open(group) for group in _groups(config)) else None


def on_gpus(config: Mapping[str, Any], gpus: Gpus | None) -> dict[str, Any]:
    """Return a configuration whose instances run on these GPUs.

    Groups that name GPUs stay unchanged, as do those for the CPU and those that leave the choice to the backend.
    """
    if gpus is None or asked_gpus(config, gpus) is None:
        return dict(config)
    groups = [_placed(group, gpus) if _open(group) else group for group in _groups(config)]
    said = ",".join(map(str, gpus)) or _HOST
    parameters = {**config.get("parameters", {}), GPUS_PARAMETER: {"string_value": said}}
    return {**config, "instance_group": groups, "parameters": parameters}


def said_gpus(config: Mapping[str, Any]) -> Gpus | None:
    """Return the GPUs that the load of a model requested; None if it left the choice to Triton."""
    said = config.get("parameters", {}).get(GPUS_PARAMETER, {}).get("string_value")
    return _parse(str(said)) if said is not None else None


def present_gpus(config: Mapping[str, Any]) -> Gpus | None:
    """Return the GPUs that the load of a model requested, or else those that Triton reports.

    None if they are unknown because the backend chooses.
    """
    if GPUS_PARAMETER in config.get("parameters", {}):
        return said_gpus(config)
    groups = _groups(config)
    if any(group.get("kind", _AUTO) not in (_CPU, _GPU) for group in groups):
        return None
    return named_gpus(config)


def _groups(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if is_ensemble(config):
        return []  # it has no instances, and Triton refuses a group
    return list(config.get("instance_group") or [{}])


def _open(group: Mapping[str, Any]) -> bool:
    """Return whether a group leaves its GPUs to the load."""
    return group.get("kind", _AUTO) == _AUTO or (group.get("kind") == _GPU and not group.get("gpus"))


def _placed(group: Mapping[str, Any], gpus: Gpus) -> dict[str, Any]:
    named = list(group.get("gpus", ()))
    if not gpus:
        # A group that requires a GPU keeps this requirement; Triton reports that there is no GPU.
        return {**group, "kind": _CPU} if group.get("kind", _AUTO) == _AUTO and not named else dict(group)
    return {**group, "kind": _GPU, "gpus": named or list(gpus)}


def _parse(said: str) -> Gpus | None:
    numbers: Iterable[str] = () if said == _HOST else said.split(",")
    try:
        return tuple(int(number) for number in numbers)
    except ValueError:
        return None  # written by another program
