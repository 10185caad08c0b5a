"""Output of the planner: one action for one model on one server. Frozen values, which the executor performs."""

from dataclasses import dataclass

from controlplane.lifecycle.state import Target

Term = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Stage:
    """Fetch the files of a target and put them into the model repository.

    Attributes:
        target: The target to stage.
        candidate: Whether to use the candidate's name instead of the model's own name.
        because: The reason, as one sentence for a person.
    """

    target: Target
    candidate: bool
    because: str


@dataclass(frozen=True, slots=True)
class Load:
    """Load the given versions of the model in Triton under one configuration.

    Attributes:
        target: The target whose configuration is sent.
        versions: The versions of the version policy, ascending. The highest one becomes active.
        candidate: Whether to use the candidate's name instead of the model's own name.
        reload: Whether to load versions again that Triton considers loaded and healthy.
        switch: Whether the versions are loaded already, so that only the version policy changes.
        on_record: Whether the target becomes active before its proof here, because the same content has passed it.
        because: The reason, as one sentence for a person.
    """

    target: Target
    versions: tuple[int, ...]
    because: str
    candidate: bool = False
    reload: bool = False
    switch: bool = False
    on_record: bool = False


@dataclass(frozen=True, slots=True)
class Prove:
    """Compare the answers of a loaded version with its golden samples.

    Attributes:
        target: The target to prove.
        candidate: Whether to use the candidate's name instead of the model's own name.
        because: The reason, as one sentence for a person.
        light: Whether to use only the smallest sample.
        examine: Whether the version is active already and is now qualified.
    """

    target: Target
    candidate: bool
    because: str
    light: bool = False
    examine: bool = False


@dataclass(frozen=True, slots=True)
class Unload:
    """Unload the model, or its candidate, and wait until Triton has unloaded it.

    Attributes:
        candidate: Whether to unload the candidate instead of the model itself.
        because: The reason, as one sentence for a person.
    """

    candidate: bool
    because: str


@dataclass(frozen=True, slots=True)
class CleanUp:
    """Remove unused folders from the model repository.

    Attributes:
        versions: Version folders to remove under the model's own name.
        candidate: Whether to remove everything under the candidate's name.
        model: Whether to remove everything under the model's own name.
        because: The reason, as one sentence for a person.
    """

    because: str
    versions: tuple[int, ...] = ()
    candidate: bool = False
    model: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Triton has not finished an operation; observe the server again soon.

    Attributes:
        because: The reason, as one sentence for a person.
    """

    because: str


Action = Stage | Load | Prove | Unload | CleanUp | Wait
