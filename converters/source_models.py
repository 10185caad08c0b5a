"""Loading of the models to convert."""

from pathlib import Path

from controlplane.domain.manifest import Format
from controlplane.domain.signature import Signature, TensorSpec
from controlplane.errors import ConversionFailedError
from converters.base import SourceModel
from converters.options import ConversionOptions

_EXTRAS = {
    Format.ONNX: "embedded",
    Format.TORCHSCRIPT: "torch",
    Format.TORCH_EXPORT: "torch",
    Format.PYTORCH: "torch",
    Format.SKLEARN: "sklearn",
    Format.XGBOOST: "boosters",
    Format.LIGHTGBM: "boosters",
    Format.TRANSFORMERS: "hf",
}


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
        ConversionFailedError: The framework is not installed.
    """
    try:
        return _open(path, format, signature, specs, options)
    except ModuleNotFoundError as error:
        if options.trust:  # the model's own code may import what is missing
            raise
        raise missing_package(format, error) from error


def missing_package(format: Format, error: ModuleNotFoundError) -> ConversionFailedError:  # noqa: A002
    """Return the error for a framework that is not installed, with the command that installs it."""
    return ConversionFailedError(
        f"reading a model of the format {format.value} needs the package {error.name!r}, which is not installed where "
        f"the control plane runs; install it: pip install 'triton-control-plane[{_EXTRAS[format]}]'"
    )


def _open(
    path: Path,
    format: Format,  # noqa: A002
    signature: Signature | None,
    specs: tuple[TensorSpec, ...],
    options: ConversionOptions,
) -> SourceModel:
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
    if format is Format.XGBOOST:
        from converters.from_boosters import XGBoostOriginal

        return XGBoostOriginal(path)
    if format is Format.LIGHTGBM:
        from converters.from_boosters import LightGBMOriginal

        return LightGBMOriginal(path)
    if format is Format.TRANSFORMERS:
        from converters.from_transformers import TransformersOriginal

        return TransformersOriginal(path, trust=options.trust)
    from converters.from_sklearn import SklearnOriginal

    return SklearnOriginal(path, trust=options.trust)
