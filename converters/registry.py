"""Registry of converters by source and target format: built-in ones, and those that third parties install.

A third party names its `Converter` subclass in an entry point::

    [project.entry-points."triton_control_plane.converters"]
    my-converter = "my_package.module:MyConverter"

It replaces a built-in converter for the same pair of formats. Entry points are loaded only in the worker.
"""

import importlib
import logging
from collections.abc import Iterator
from importlib import metadata

from controlplane.domain.manifest import Format
from controlplane.errors import ConversionFailedError, UnsupportedConversionError
from converters.base import Converter

logger = logging.getLogger(__name__)

GROUP = "triton_control_plane.converters"

# Module and class names, because importing torch takes seconds, and listing the conversions must not wait for it.
BUILT_IN: dict[tuple[Format, Format], str] = {
    (Format.ONNX, Format.ONNX): "converters.from_onnx:OnnxToOnnx",
    (Format.TORCHSCRIPT, Format.TORCHSCRIPT): "converters.from_torchscript:TorchScriptToTorchScript",
    (Format.TORCHSCRIPT, Format.ONNX): "converters.from_torchscript:TorchScriptToOnnx",
    (Format.TORCH_EXPORT, Format.ONNX): "converters.from_torch:ExportToOnnx",
    (Format.TORCH_EXPORT, Format.TORCHSCRIPT): "converters.from_torch:ExportToTorchScript",
    (Format.PYTORCH, Format.ONNX): "converters.from_torch:ModuleToOnnx",
    (Format.PYTORCH, Format.TORCHSCRIPT): "converters.from_torch:ModuleToTorchScript",
    (Format.SKLEARN, Format.ONNX): "converters.from_sklearn:SklearnToOnnx",
    (Format.XGBOOST, Format.ONNX): "converters.from_boosters:XGBoostToOnnx",
    (Format.LIGHTGBM, Format.ONNX): "converters.from_boosters:LightGBMToOnnx",
    (Format.TRANSFORMERS, Format.ONNX): "converters.from_transformers:TransformersToOnnx",
}


def find_converter(source: Format, target: Format) -> Converter:
    """Return the converter for a pair of formats.

    Raises:
        UnsupportedConversionError: There is none; the message lists the possible targets of ``source``.
        ConversionFailedError: An installed entry point cannot be loaded.
    """
    installed = {(kind.source, kind.target): kind for kind in _installed()}
    if (source, target) in installed:
        return installed[source, target]()
    if (source, target) in BUILT_IN:
        return _built_in(source, target)()
    possible = sorted({to.value for of, to in (*BUILT_IN, *installed) if of is source})
    raise UnsupportedConversionError(
        f"{source.value} cannot be converted to {target.value}; possible targets: {', '.join(possible) or 'none'}",
        source=source.value,
        target=target.value,
        possible=possible,
    )


def possible_targets(source: Format) -> tuple[Format, ...]:
    """Return the targets of the built-in converters for a format, without loading any entry point."""
    return tuple(to for of, to in BUILT_IN if of is source)


def _built_in(source: Format, target: Format) -> type[Converter]:
    module, _, name = BUILT_IN[source, target].partition(":")
    try:
        kind: type[Converter] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        extra = "hf" if source is Format.TRANSFORMERS else "all"
        raise ConversionFailedError(
            f"this conversion needs a package that is not installed ({error}); install it: pip install "
            f"'triton-control-plane[{extra}]'"
        ) from error
    return kind


def _installed() -> Iterator[type[Converter]]:
    for entry in metadata.entry_points(group=GROUP):
        try:
            kind = entry.load()
        except (ImportError, AttributeError) as error:
            raise ConversionFailedError(f"failed to load the installed converter {entry.name!r}: {error}") from error
        if not (isinstance(kind, type) and issubclass(kind, Converter)):
            raise ConversionFailedError(
                f"the installed converter {entry.name!r} is not a subclass of converters.base.Converter"
            )
        logger.info("converter %s of %s converts %s to %s", kind.name, entry.value, kind.source, kind.target)
        yield kind
