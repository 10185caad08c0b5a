"""Which GPUs a model's instances run on: written into the configuration of a load, and read back. Pure.

One configuration is made for all servers; where a model's place on a server names GPUs, each load there says them
(``instance_group { kind: KIND_GPU gpus: [1] }``). Left alone, Triton starts ``count`` instances on *every* GPU that it
sees. What was said is kept in a parameter as well, because Triton fills instance groups in by itself.

GPUs are numbers as in ``instance_group.gpus``; the empty tuple is the host, None leaves it to Triton.
"""

from collections.abc import Iterable, Mapping
from typing import Any

Gpus = tuple[int, ...]

GPUS_PARAMETER = "tcp_gpus"
"""Carries the GPUs that a load asked for; no part of the configuration's digest."""

_HOST = "host"
_CPU, _GPU, _AUTO = "KIND_CPU", "KIND_GPU", "KIND_AUTO"


def named_gpus(config: Mapping[str, Any]) -> Gpus:
    """Return the GPUs that a configuration names itself, as its user wants it; empty where it names none."""
    return tuple(sorted({int(gpu) for group in _groups(config) for gpu in group.get("gpus", ())}))


def wants_gpu(config: Mapping[str, Any]) -> bool:
    """Whether it cannot run without a GPU."""
    return any(group.get("kind") == _GPU or group.get("gpus") for group in _groups(config))


def may_use_gpu(config: Mapping[str, Any]) -> bool:
    """Whether any of its instances runs on a GPU where there is one."""
    return any(group.get("kind", _AUTO) != _CPU for group in _groups(config))


def asked_gpus(config: Mapping[str, Any], place: Gpus | None) -> Gpus | None:
    """Return what a load of this configuration says of GPUs at a place; None where it leaves them as they are.

    Args:
        config: The configuration for all servers.
        place: The numbers of the GPUs that a model has its place on.
    """
    return place if any(_open(group) for group in _groups(config)) else None


def on_gpus(config: Mapping[str, Any], gpus: Gpus | None) -> dict[str, Any]:
    """Return a configuration whose instances run on these GPUs.

    Groups that name GPUs keep them, as do those for the CPU and those that leave the choice to the backend.
    """
    if gpus is None or asked_gpus(config, gpus) is None:
        return dict(config)
    groups = [_placed(group, gpus) if _open(group) else group for group in _groups(config)]
    said = ",".join(map(str, gpus)) or _HOST
    parameters = {**config.get("parameters", {}), GPUS_PARAMETER: {"string_value": said}}
    return {**config, "instance_group": groups, "parameters": parameters}


def said_gpus(config: Mapping[str, Any]) -> Gpus | None:
    """Return the GPUs that the load of a model asked for; None where it left them to Triton."""
    said = config.get("parameters", {}).get(GPUS_PARAMETER, {}).get("string_value")
    return _parse(str(said)) if said is not None else None


def present_gpus(config: Mapping[str, Any]) -> Gpus | None:
    """Return the GPUs that a loaded model was told to use, or else those that Triton says it uses.

    None where nobody can tell: the backend chooses.
    """
    if GPUS_PARAMETER in config.get("parameters", {}):
        return said_gpus(config)
    groups = _groups(config)
    if any(group.get("kind", _AUTO) not in (_CPU, _GPU) for group in groups):
        return None
    return named_gpus(config)


def _groups(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(config.get("instance_group") or [{}])


def _open(group: Mapping[str, Any]) -> bool:
    """Whether a group leaves its GPUs to whoever loads it."""
    return group.get("kind", _AUTO) == _AUTO or (group.get("kind") == _GPU and not group.get("gpus"))


def _placed(group: Mapping[str, Any], gpus: Gpus) -> dict[str, Any]:
    named = list(group.get("gpus", ()))
    if not gpus:
        # What insists on a GPU goes on doing so: Triton says that there is none.
        return {**group, "kind": _CPU} if group.get("kind", _AUTO) == _AUTO and not named else dict(group)
    return {**group, "kind": _GPU, "gpus": named or list(gpus)}


def _parse(said: str) -> Gpus | None:
    numbers: Iterable[str] = () if said == _HOST else said.split(",")
    try:
        return tuple(int(number) for number in numbers)
    except ValueError:
        return None  # somebody else's
