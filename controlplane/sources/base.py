"""The port of model sources. A third party implements `ModelSource` and names it in an entry point."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from controlplane.domain.manifest import Origin
from controlplane.domain.signature import TensorSpec

Progress = Callable[[str], None]
"""Reports what is done now, as one short sentence."""


@dataclass(frozen=True, slots=True)
class SourceArtifact:
    """A model on this machine's disk, with its origin.

    Attributes:
        path: The file or folder to publish.
        name: A name for the model, if the user gives none; it may need changes to be valid.
        origin: Where it comes from; the version's lineage keeps it.
        inputs: The model's inputs, if the source declares them and the files do not; for a conversion.
        notes: Sentences for the user: what was left out, what is missing.
    """

    path: Path
    name: str
    origin: Origin
    inputs: tuple[TensorSpec, ...] | None = None
    notes: tuple[str, ...] = ()


class ModelSource(ABC):
    """A place that models come from.

    Attributes:
        scheme: The scheme of its URIs, as ``mlflow`` of ``mlflow://models:/vad/3``.
        example: A URI to show in messages.
    """

    scheme: ClassVar[str]
    example: ClassVar[str]

    @abstractmethod
    def fetch(self, uri: str, folder: Path, environment: Mapping[str, str], progress: Progress) -> SourceArtifact:
        """Download the model of a URI.

        Args:
            uri: A URI with this source's scheme.
            folder: An empty folder for the files; the caller removes it after the publication.
            environment: Environment variables, with the source's address and credentials.
            progress: Reports the progress.

        Raises:
            InvalidInputError: The URI is not valid.
            NotFoundError: The source has no such model.
            InvalidArtifactError: The model has no form that can be published.
            AccessError: The source refused the credentials.
            SourceError: The source is unreachable, or failed.
        """

    def recognize(self, path: Path) -> SourceArtifact | None:  # noqa: ARG002 - for subclasses
        """Read a folder that was downloaded from this source earlier; None if it is not one.

        Raises:
            InvalidArtifactError: It is one, but the model has no form that can be published.
        """
        return None
