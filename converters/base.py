"""The interface of converters. A third party implements `Converter` and names it in an entry point."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from controlplane.domain.arrays import Array
from controlplane.domain.manifest import Format
from controlplane.domain.samples import Tensors
from controlplane.domain.signature import Signature, TensorSpec
from converters.options import ConversionOptions, SamplingOptions

Progress = Callable[[str, str], None]
"""Reports progress: a stage (one word) and a message (one sentence)."""


class SourceModel(ABC):
    """The loaded model to convert. Its answers are the reference for the converted model.

    Attributes:
        format: The model's format.
        path: The model file.
        native: The framework's own object: an ``nn.Module``, a ``ScriptModule``, an ``ExportedProgram``, a
            scikit-learn estimator; for ONNX None (converters read the file).
        inputs: The inputs, if the artifact declares them.
        signature: The whole signature, if the artifact declares it.
    """

    format: Format
    path: Path
    native: Any = None
    inputs: tuple[TensorSpec, ...] | None = None
    signature: Signature | None = None

    @abstractmethod
    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request and return the outputs by name, in order.

        Raises:
            converters.runtimes.RunError: The model rejected the inputs or failed.
        """

    def suggest_inputs(
        self,
        specs: Sequence[TensorSpec],  # noqa: ARG002 - for subclasses
        options: SamplingOptions,  # noqa: ARG002
    ) -> tuple[Tensors, ...]:
        """Return samples that exercise the model better than random values; empty if there are none.

        They are used if the caller gives no samples.

        Args:
            specs: Names, types and shapes of the inputs.
            options: The seed and the number of samples.
        """
        return ()


@dataclass(frozen=True, slots=True)
class ConversionRequest:
    """The input of a converter.

    Attributes:
        signature: The inputs and outputs that the result must have, with their names and dynamic dimensions.
        examples: Inputs that the original accepts, at least one; the first has a batch of two or more.
        options: The caller's options.
        output: Path of the model file to write (``model.onnx`` or ``model.pt``); files beside it belong to it.
        progress: Reports the progress.
    """

    signature: Signature
    examples: tuple[Tensors, ...]
    options: ConversionOptions
    output: Path
    progress: Progress


class Converter(ABC):
    """Converts models of one format to another.

    Attributes:
        name: Name for the lineage: `a-z`, digits and `-`.
        version: Version for the lineage; change it when the same input gives a different output.
        source: The format that it reads.
        target: The format that it writes; Triton must be able to serve it.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    source: ClassVar[Format]
    target: ClassVar[Format]

    @abstractmethod
    def convert(self, original: SourceModel, request: ConversionRequest) -> tuple[str, ...]:
        """Write the converted model to ``request.output`` and return warnings for the publisher.

        The caller inspects the result and checks its parity. The converter runs in a worker and may raise any exception
        of its framework.
        """
