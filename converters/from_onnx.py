"""Conversion of ONNX to ONNX: another opset, a lower precision."""

from pathlib import Path

from controlplane.domain.arrays import Array
from controlplane.domain.manifest import Format
from controlplane.domain.samples import Tensors
from controlplane.domain.signature import Signature
from converters.base import ConversionRequest, Converter, SourceModel
from converters.onnx_artifact import load_model
from converters.onnx_output import finish_onnx
from converters.runtimes import OnnxRuntime


class OnnxOriginal(SourceModel):
    """An ONNX model that onnxruntime runs on the CPU."""

    format = Format.ONNX

    def __init__(self, path: Path, signature: Signature | None) -> None:
        self.path = path
        self.signature = signature
        self.inputs = signature.inputs if signature else None
        self._runtime = OnnxRuntime(path)

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """See `converters.base.SourceModel.run`."""
        return self._runtime.run(inputs)


class OnnxToOnnx(Converter):
    """Converter that uses onnx's version converter, and onnxruntime's fp16 and int8 tools."""

    name = "onnx-to-onnx"
    source = Format.ONNX
    target = Format.ONNX

    def convert(self, original: SourceModel, request: ConversionRequest) -> tuple[str, ...]:
        """See `converters.base.Converter.convert`."""
        request.progress("convert", f"rewriting {original.path.name}")
        model = load_model(original.path, original.path.parent)
        finish_onnx(model, request.options, request.signature, request.output)
        if request.options.opset is None and request.options.precision == "fp32":
            return ("neither opset nor precision was requested, so the result equals the original",)
        return ()
