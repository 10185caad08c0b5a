"""TorchScript to TorchScript (made servable, halved) and to ONNX."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch

from controlplane.domain.manifest import Format
from controlplane.domain.samples import Tensors
from controlplane.domain.signature import DYNAMIC, Array
from converters.base import ConversionRequest, Converter, Original
from converters.onnx_output import finish_onnx
from converters.runtimes import TorchScriptRuntime
from converters.torch_modules import adapt, example_arguments, submodule

LEGACY_OPSET = 17
"""What torch's TorchScript exporter writes well; it was last taught opset 20."""


class TorchScriptOriginal(Original):
    """A TorchScript module, answered by torch on the CPU."""

    format = Format.TORCHSCRIPT

    def __init__(self, path: Path, part: str | None) -> None:
        self.path = path
        self.runtime = TorchScriptRuntime(path, None)
        if part is not None:
            self.runtime.select(submodule(self.runtime.module, part))
        self.native = self.runtime.module
        self.whole = part is None

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """See `converters.base.Original.run`."""
        return self.runtime.run(inputs)


class TorchScriptToTorchScript(Converter):
    """Makes a module servable: scalar arguments become tensors, a part is taken out, weights are halved."""

    name = "torchscript-to-torchscript"
    source = Format.TORCHSCRIPT
    target = Format.TORCHSCRIPT

    def convert(self, original: Original, request: ConversionRequest) -> tuple[str, ...]:
        """See `converters.base.Converter.convert`."""
        assert isinstance(original, TorchScriptOriginal)
        module, scalars = original.native, original.runtime.scalar_arguments
        if scalars:
            request.progress("convert", f"taking {', '.join(scalars)} as tensors")
            module = _with_tensor_arguments(original.runtime)
        if request.options.precision == "fp16":
            request.progress("convert", "tracing it in half precision")
            specs = request.signature.inputs
            adapted = adapt(module, [spec.name for spec in specs], half=True)
            module = torch.jit.trace(  # type: ignore[no-untyped-call]
                adapted, example_arguments(request.examples[0], specs), strict=False
            )
        elif not scalars and original.whole:
            shutil.copyfile(original.path, request.output)
            return ("nothing was asked for that changes the module: the result is the original",)
        torch.jit.save(module, str(request.output))
        return ()


def _with_tensor_arguments(runtime: TorchScriptRuntime) -> Any:
    """Wrap a scripted module so that its int, float and bool arguments come as tensors of one element."""
    takes = ", ".join(f"{name}: {'Tensor' if kind in _SCALARS else kind}" for name, kind in runtime.arguments.items())
    gives = ", ".join(f"{kind}({name})" if kind in _SCALARS else name for name, kind in runtime.arguments.items())

    class Wrapped(torch.jit.ScriptModule):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

    wrapped = Wrapped(runtime.module)
    wrapped.define(f"def forward(self, {takes}):\n    return self.inner({gives})\n")
    return wrapped.eval()


_SCALARS = {"int", "float", "bool"}


class TorchScriptToOnnx(Converter):
    """torch's TorchScript-based exporter, the only one that reads ScriptModules."""

    name = "torchscript-to-onnx"
    source = Format.TORCHSCRIPT
    target = Format.ONNX

    def convert(self, original: Original, request: ConversionRequest) -> tuple[str, ...]:
        """See `converters.base.Converter.convert`."""
        assert isinstance(original, TorchScriptOriginal)
        signature = request.signature
        axes = {
            spec.name: {
                axis: "batch" if signature.batched and axis == 0 else f"{spec.name}_{axis}"
                for axis, size in enumerate(spec.shape)
                if size == DYNAMIC
            }
            for spec in (*signature.inputs, *signature.outputs)
        }
        module = original.native
        if original.runtime.scalar_arguments:
            module = _with_tensor_arguments(original.runtime)
        request.progress("convert", "exporting with torch.onnx (TorchScript exporter)")
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # it warns that it is the old exporter; for ScriptModules it is the only one
            torch.onnx.export(
                module,
                example_arguments(request.examples[0], signature.inputs),
                str(request.output),
                dynamo=False,
                input_names=[spec.name for spec in signature.inputs],
                output_names=[spec.name for spec in signature.outputs],
                dynamic_axes={name: shape for name, shape in axes.items() if shape},
                opset_version=min(request.options.opset or LEGACY_OPSET, LEGACY_OPSET),
            )
        finish_onnx(onnx.load_model(request.output), request.options, signature, request.output)
        return ()
