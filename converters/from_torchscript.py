"""Conversion of TorchScript to TorchScript (made servable, or in half precision) and to ONNX."""

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch

from controlplane.domain.arrays import Array
from controlplane.domain.manifest import Format
from controlplane.domain.samples import Tensors
from controlplane.domain.signature import DYNAMIC
from converters.base import ConversionRequest, Converter, SourceModel
from converters.onnx_output import finish_onnx
from converters.options import ConversionOptions
from converters.runtimes import TorchScriptRuntime, is_texts
from converters.torch_modules import adapt, example_arguments, submodule
from converters.torchscript_rules import training_parts

LEGACY_OPSET = 17
"""The opset that torch's TorchScript exporter writes reliably; the newest that it supports is 20."""


class TorchScriptOriginal(SourceModel):
    """A TorchScript module in evaluation mode that torch runs on the CPU.

    Attributes:
        training: The parts that compute in training mode in the saved file; evaluation mode changes that for the parts
            of a scripted module.
        whole: Whether it is the whole module and not a submodule.
    """

    format = Format.TORCHSCRIPT

    def __init__(self, path: Path, options: ConversionOptions) -> None:
        self.path = path
        self.training = training_parts(TorchScriptRuntime(path, None).module)
        self.runtime = TorchScriptRuntime(path, None, evaluate=True)
        if options.submodule is not None:
            self.runtime.select(submodule(self.runtime.module, options.submodule))
        self.native = self.runtime.module
        self.whole = options.submodule is None
        self._without_scalars = options.target is Format.TORCHSCRIPT

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """See `converters.base.SourceModel.run`."""
        answers = self.runtime.run(inputs)
        if self._without_scalars:  # Triton's PyTorch backend returns no tensors without dimensions
            return {name: array.reshape(array.shape or (1,)) for name, array in answers.items()}
        return answers


class TorchScriptToTorchScript(Converter):
    """Converter that makes a module servable, and halves its weights on request.

    Arguments that are numbers become tensors, returned dictionaries and lists become a tuple, a module that was saved
    in training mode is saved in evaluation mode, and a requested submodule is extracted.
    """

    name = "torchscript-to-torchscript"
    version = "2"
    source = Format.TORCHSCRIPT
    target = Format.TORCHSCRIPT

    def convert(self, original: SourceModel, request: ConversionRequest) -> tuple[str, ...]:
        """See `converters.base.Converter.convert`."""
        assert isinstance(original, TorchScriptOriginal)
        module, warnings = original.native, []
        answer = original.runtime.answer(request.examples[0])
        scalars, restructured = original.runtime.scalar_arguments, not _is_served_as_it_is(answer)
        if scalars or restructured:
            request.progress("convert", "wrapping the module so that it takes tensors and returns a tuple of tensors")
            module = _wrapped(original.runtime, answer if restructured else None)
        if original.training:
            still = training_parts(original.native)
            if still:
                warnings.append(f"these parts run in training mode, because they were traced in it: {', '.join(still)}")
            else:
                warnings.append("the original was saved in training mode; the result is in evaluation mode")
        if request.options.precision == "fp16":
            request.progress("convert", "tracing the module in half precision")
            specs = request.signature.inputs
            adapted = adapt(module, [spec.name for spec in specs], half=True)
            module = torch.jit.trace(  # type: ignore[no-untyped-call]
                adapted, example_arguments(request.examples[0], specs), strict=False
            )
        elif not scalars and not restructured and not original.training and original.whole:
            shutil.copyfile(original.path, request.output)
            return ("no option changes the module, so the result equals the original",)
        torch.jit.save(module, str(request.output))
        return tuple(warnings)


def _is_served_as_it_is(answer: Any) -> bool:
    """Return whether Triton can serve an answer: tensors with dimensions or lists of strings, alone or in a tuple."""
    values = answer if isinstance(answer, tuple) else (answer,)
    return all(is_texts(value) or (isinstance(value, torch.Tensor) and value.ndim > 0) for value in values)


def _wrapped(runtime: TorchScriptRuntime, answer: Any) -> Any:
    """Wrap a scripted module so that it takes numbers as tensors of one element.

    Args:
        runtime: The module.
        answer: One of its answers, to return a flat tuple in the order of `flatten_outputs`; None keeps the return
            value.
    """
    arguments = runtime.arguments.items()
    takes = ", ".join(f"{name}: {'Tensor' if kind in _SCALARS else kind}" for name, kind in arguments)
    gives = ", ".join(f"{kind}({name})" if kind in _SCALARS else name for name, kind in arguments)
    returned = "out" if answer is None else ", ".join(_flat_expressions(answer, "out"))

    class Wrapped(torch.jit.ScriptModule):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

    wrapped = Wrapped(runtime.module)
    wrapped.define(f"def forward(self, {takes}):\n    out = self.inner({gives})\n    return {returned}\n")
    return wrapped.eval()


_SCALARS = {"int", "float", "bool"}


def _flat_expressions(answer: Any, expression: str) -> list[str]:
    """Return a TorchScript expression for each output, in the order of `converters.runtimes.flatten_outputs`."""
    if is_texts(answer):
        return [expression]
    if isinstance(answer, Mapping):
        return [part for key, value in answer.items() for part in _flat_expressions(value, f"{expression}[{key!r}]")]
    if isinstance(answer, tuple | list):
        return [part for i, value in enumerate(answer) for part in _flat_expressions(value, f"{expression}[{i}]")]
    if isinstance(answer, bool | int | float):
        return [f"torch.tensor([{expression}])"]
    if answer is None:
        return []
    return [f"{expression}.reshape(1)" if answer.ndim == 0 else expression]


class TorchScriptToOnnx(Converter):
    """Converter that uses torch's TorchScript-based exporter, the only one that reads ScriptModules."""

    name = "torchscript-to-onnx"
    source = Format.TORCHSCRIPT
    target = Format.ONNX

    def convert(self, original: SourceModel, request: ConversionRequest) -> tuple[str, ...]:
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
            module = _wrapped(original.runtime, None)
        request.progress("convert", "exporting with torch.onnx (TorchScript exporter)")
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # it warns that it is the old exporter, but no other one reads ScriptModules
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
