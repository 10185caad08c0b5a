"""Which deployments of pipelines pin versions of a model; read from the deployments, and recorded nowhere else.

A commit of a member and one of a pipeline are commits to two chains, so two that happen at the same moment may both
succeed. The reconciler then does not load the pipeline, and its status has the reason.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from controlplane.domain.deployment import DeploymentSpec


class _Revision(Protocol):
    @property
    def spec(self) -> DeploymentSpec: ...


class _Deployments(Protocol):
    def after(self, model: str, limit: int, wanted: Callable[[str], bool]) -> Sequence[_Revision]: ...


@dataclass(frozen=True, slots=True)
class Pin:
    """A version of a model that the deployment of a pipeline pins.

    Attributes:
        pipeline: The pipeline.
        pipeline_version: Its version.
        version: The version of the member.
        loaded: Whether the pipeline is to be loaded.
    """

    pipeline: str
    pipeline_version: int
    version: int
    loaded: bool

    def __str__(self) -> str:
        return f"{self.pipeline}:{self.pipeline_version}"


def pins_on(deployments: _Deployments, model: str) -> list[Pin]:
    """Return the pins on versions of a model, by pipeline. Blocks; the store is asked once for changes."""
    return [pin for one in deployments.after("", sys.maxsize, lambda name: name != model) for pin in _pins(one, model)]


def _pins(revision: _Revision, model: str) -> Iterator[Pin]:
    spec = revision.spec
    if (version := spec.settings.members.get(model)) is not None:
        yield Pin(spec.model, spec.version, version, spec.loaded)
    if spec.trial is not None and (version := spec.trial.settings.members.get(model)) is not None:
        yield Pin(spec.model, spec.trial.version, version, spec.loaded)
