"""Loading of the models to convert."""

from pathlib import Path

from controlplane.domain.manifest import Format
from controlplane.domain.signature import Signature, TensorSpec
from converters.base import SourceModel
from converters.options import ConversionOptions


def open_source_model(
    path: Path,
    format: Format,  # noqa: A002 - the name in the API
    signature: Signature | None,
    specs: tuple[TensorSpec, ...],
    options: ConversionOptions,
) -> SourceModel:
    """Load the original with its own framework, which is imported only when it is needed.

    Raises:
        InvalidArtifactError: The framework cannot load the original.
        UntrustedArtifactError: Loading the original runs its code, and ``options.trust`` is false.
    """
    if format is Format.ONNX:
        from converters.from_onnx import OnnxOriginal

        return OnnxOriginal(path, signature)
    if format is Format.TORCHSCRIPT:
        from converters.from_torchscript import TorchScriptOriginal

        return TorchScriptOriginal(path, options)
    if format is Format.TORCH_EXPORT:
        from converters.from_torch import ExportOriginal

        return ExportOriginal(path)
    if format is Format.PYTORCH:
        from converters.from_torch import ModuleOriginal

        return ModuleOriginal(path, options, specs)
    from converters.from_sklearn import SklearnOriginal

    return SklearnOriginal(path, trust=options.trust)
