"""What comes out of the planner: one step for one model on one server. Frozen values; the executor performs them."""

from dataclasses import dataclass

from controlplane.lifecycle.state import Target

Term = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Stage:
    """Fetch a target's files and put them into the model repository.

    Attributes:
        target: What to stage.
        candidate: Under the candidate's name instead of the model's own.
        because: One sentence for a person.
    """

    target: Target
    candidate: bool
    because: str


@dataclass(frozen=True, slots=True)
class Load:
    """Tell Triton which versions of the model shall be loaded, under which configuration.

    Attributes:
        target: The target whose configuration is sent.
        versions: The versions of the version policy, ascending. The highest one answers.
        candidate: Under the candidate's name instead of the model's own.
        reload: Load again what Triton believes to be in order.
        because: One sentence for a person.
    """

    target: Target
    versions: tuple[int, ...]
    because: str
    candidate: bool = False
    reload: bool = False


@dataclass(frozen=True, slots=True)
class Prove:
    """Ask a loaded version the golden samples.

    Attributes:
        target: What to prove.
        candidate: Under the candidate's name instead of the model's own.
        because: One sentence for a person.
        light: The smallest sample alone.
        examine: It answers already, and is looked at more closely now.
    """

    target: Target
    candidate: bool
    because: str
    light: bool = False
    examine: bool = False


@dataclass(frozen=True, slots=True)
class Unload:
    """Unload the model, or its candidate, and wait until it is gone.

    Attributes:
        candidate: The candidate instead of the model itself.
        because: One sentence for a person.
    """

    candidate: bool
    because: str


@dataclass(frozen=True, slots=True)
class CleanUp:
    """Remove from the model repository what nothing needs.

    Attributes:
        versions: Version folders under the model's own name.
        candidate: Everything under the candidate's name.
        model: Everything under the model's own name.
        because: One sentence for a person.
    """

    because: str
    versions: tuple[int, ...] = ()
    candidate: bool = False
    model: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Triton is not done with something; look again soon.

    Attributes:
        because: One sentence for a person.
    """

    because: str


Action = Stage | Load | Prove | Unload | CleanUp | Wait
