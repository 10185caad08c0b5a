"""What a converter is. A third party implements `Converter` and names it in an entry point."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from controlplane.domain.arrays import Array
from controlplane.domain.manifest import Format
from controlplane.domain.samples import Tensors
from controlplane.domain.signature import Signature, TensorSpec
from converters.options import ConversionOptions

Progress = Callable[[str, str], None]
"""Takes a stage (one word) and a message (one sentence)."""


class SourceModel(ABC):
    """The model to convert, loaded and able to answer: the reference that the result is compared with.

    Attributes:
        format: Its format.
        path: Its model file.
        native: The framework's own object: an ``nn.Module``, a ``ScriptModule``, an ``ExportedProgram``, a
            scikit-learn estimator; for ONNX None (converters read the file).
        inputs: Its inputs, where the artifact says them.
        signature: All of it, where the artifact says it.
    """

    format: Format
    path: Path
    native: Any = None
    inputs: tuple[TensorSpec, ...] | None = None
    signature: Signature | None = None

    @abstractmethod
    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request: outputs by name, in order.

        Raises:
            converters.runtimes.RunError: It refused the inputs or failed.
        """


@dataclass(frozen=True, slots=True)
class ConversionRequest:
    """What a converter is asked for.

    Attributes:
        signature: What the result must take and give, under these names, with these dynamic dimensions.
        examples: Inputs that the original accepts, at least one; the first has a batch of two or more.
        options: The caller's options.
        output: Where the model file goes (``model.onnx`` or ``model.pt``); files beside it belong to it.
        progress: Reports what is being done.
    """

    signature: Signature
    examples: tuple[Tensors, ...]
    options: ConversionOptions
    output: Path
    progress: Progress


class Converter(ABC):
    """Turns a model of one format into another.

    Attributes:
        name: For the lineage, `a-z`, digits and `-`.
        version: For the lineage; change it when the same input gives another output.
        source: The format it reads.
        target: The format it writes, one that Triton serves.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    source: ClassVar[Format]
    target: ClassVar[Format]

    @abstractmethod
    def convert(self, original: SourceModel, request: ConversionRequest) -> tuple[str, ...]:
        """Write the converted model to ``request.output`` and return warnings for the publisher.

        Inspection and parity are done by the caller. May raise whatever its framework raises: it runs in a worker.
        """
