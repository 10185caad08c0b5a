"""Pipelines: versions whose requests are answered with the help of other models, their members. Pure.

An ensemble names its members in the steps of its configuration. A Python model that calls other models (business logic
scripting) declares them in the parameter `DEPENDS_ON`. Members are deployments of their own; a deployment of a pipeline
pins one version of each.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.domain.names import validate_model_name
from controlplane.errors import InvalidArtifactError, InvalidConfigError, InvalidNameError

ENSEMBLE = "ensemble"
"""Platform of an ensemble in Triton's configuration; here also the name of its backend, which is Triton itself."""

DEPENDS_ON = "depends_on"
"""Parameter of an author's configuration with the names of the models that its code calls."""

MEMBERS_PARAMETER = "tcp_members"
"""Parameter of a loaded pipeline with the version of each member, as JSON."""

MAX_MEMBERS = 64


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an ensemble.

    Attributes:
        model: The member.
        inputs: The tensor of the ensemble that each input of the member gets.
        outputs: The tensor of the ensemble that each output of the member becomes.
    """

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def is_ensemble(config: Mapping[str, Any] | None) -> bool:
    """Return whether a configuration describes an ensemble."""
    return config is not None and ("ensemble_scheduling" in config or config.get("platform") == ENSEMBLE)


def steps_of(config: Mapping[str, Any] | None) -> tuple[Step, ...]:
    """Return the steps of an ensemble; empty for other models."""
    steps = (config or {}).get("ensemble_scheduling", {}).get("step", ())
    return tuple(
        Step(str(step.get("model_name", "")), dict(step.get("input_map", {})), dict(step.get("output_map", {})))
        for step in steps
    )


def members_of(config: Mapping[str, Any], declared: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the members of a version, in the order in which they are named.

    Args:
        config: The author's configuration.
        declared: Members that the publisher names in addition.

    Raises:
        InvalidArtifactError: A name is not that of a model, the ensemble has no steps, or the version cannot call other
            models.
    """
    steps = steps_of(config)
    declared = tuple(declared)
    if is_ensemble(config) and not steps:
        raise InvalidArtifactError("config.pbtxt describes an ensemble without steps; add ensemble_scheduling")
    parameter = str(config.get("parameters", {}).get(DEPENDS_ON, {}).get("string_value", ""))
    named = [name for name in re.split(r"[,\s]+", parameter) if name]
    if (named or declared) and config.get("backend") != "python":
        why = "the members of an ensemble are those of its steps" if steps else "only a Python model calls other models"
        raise InvalidArtifactError(f"{DEPENDS_ON} is given ({', '.join([*named, *declared])}), but {why}; remove it")
    members = tuple(dict.fromkeys([*(step.model for step in steps), *named, *declared]))
    if len(members) > MAX_MEMBERS:
        raise InvalidArtifactError(f"the pipeline has {len(members)} members; the limit is {MAX_MEMBERS}")
    for name in members:
        try:
            validate_model_name(name)
        except InvalidNameError as error:
            raise InvalidArtifactError(
                f"config.pbtxt names a member that cannot be deployed: {error.message}"
            ) from error
    return members


def with_members(config: Mapping[str, Any], members: Sequence[str], pins: Mapping[str, int]) -> dict[str, Any]:
    """Return a pipeline's configuration with the pinned version of each member.

    Raises:
        InvalidConfigError: A member has no pinned version, or a version is pinned for a model that is no member.
    """
    if missing := [name for name in members if name not in pins]:
        raise InvalidConfigError(
            f"no version of the member {missing[0]!r} is pinned; deploy {missing[0]!r}, then deploy the pipeline",
            field="members",
        )
    if unknown := sorted(pins.keys() - set(members)):
        have = f"its members are {', '.join(members)}" if members else "it has no members"
        raise InvalidConfigError(f"{unknown[0]!r} is not a member of this version: {have}", field="members")
    if not members:
        return dict(config)
    made = dict(config)
    if is_ensemble(config):
        scheduling = config["ensemble_scheduling"]
        steps = [{**step, "model_version": pins[step["model_name"]]} for step in scheduling["step"]]
        made["ensemble_scheduling"] = {**scheduling, "step": steps}
    text = json.dumps({name: pins[name] for name in members}, sort_keys=True)
    made["parameters"] = {**config.get("parameters", {}), MEMBERS_PARAMETER: {"string_value": text}}
    return made
