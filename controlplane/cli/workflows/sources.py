"""The files of a push, a conversion or a validation: a path on this machine, or the URI of a model elsewhere."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from controlplane.cli.output import Output
from controlplane.cli.progress import Bar
from controlplane.domain.manifest import Origin
from controlplane.domain.signature import TensorSpec
from controlplane.errors import InvalidArtifactError
from controlplane.sources.base import SourceArtifact
from controlplane.sources.registry import fetched, is_uri, recognize


@dataclass(frozen=True, slots=True)
class LocalArtifact:
    """Files on this machine.

    Attributes:
        path: The file or folder.
        name: The path or name from which a model's name is derived, if the user gives none.
        origin: Where the files come from; None if they are the user's own.
        inputs: The inputs, if they are known and the files do not declare them.
    """

    path: Path
    name: Path
    origin: Origin | None = None
    inputs: tuple[TensorSpec, ...] | None = None


@contextmanager
def local_artifact(what: str, data_dir: Path, out: Output, *, named: bool = True) -> Iterator[LocalArtifact]:
    """Provide the files of a path, or download those of a URI and remove them at the end of the block.

    Args:
        what: The path or URI.
        data_dir: The data folder, for the download.
        out: Shows the progress and notes.
        named: Whether the user gave the model's name as well, for a message.

    Raises:
        InvalidArtifactError: There is no such path, or the model has no form that can be published.
        ControlPlaneError: See `controlplane.sources.base.ModelSource.fetch`.
    """
    if not is_uri(what):
        path = Path(what)
        if not path.exists():
            hint = "" if named else "; use `tritonctl push NAME PATH` or `tritonctl push PATH`"
            raise InvalidArtifactError(f"no such file or folder: {what!r}{hint}", path=what)
        artifact = recognize(path) if path.is_dir() else None
        yield LocalArtifact(path, path) if artifact is None else _local(artifact, path, out)
        return
    with ExitStack() as stack:
        with Bar(out) as bar:
            artifact = stack.enter_context(fetched(what, data_dir / "client" / "sources", bar.stage))
        yield _local(artifact, Path(artifact.name), out)


def _local(artifact: SourceArtifact, name: Path, out: Output) -> LocalArtifact:
    for note in artifact.notes:
        out.note(f"note: {note}", style="yellow")
    return LocalArtifact(artifact.path, name, artifact.origin, artifact.inputs)
