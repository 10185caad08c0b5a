"""Conversion of PyTorch modules and torch.export programs to ONNX and TorchScript."""

import importlib
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from torch.jit._trace import TracerWarning

from controlplane.domain.arrays import Array
from controlplane.domain.manifest import Format
from controlplane.domain.samples import Tensors
from controlplane.domain.signature import DYNAMIC, TensorSpec
from controlplane.errors import ConversionFailedError, InvalidArtifactError, InvalidInputError, UntrustedArtifactError
from converters.base import ConversionRequest, Converter, SourceModel
from converters.onnx_output import finish_onnx
from converters.options import ConversionOptions
from converters.runtimes import THREADS, call_torch, one_line
from converters.torch_modules import adapt, dtype_of, dynamic_shapes, example_arguments, forward_arguments, submodule

EXPORT_OPSET = 18
"""The opset that torch's exporter writes itself; onnx's version converter produces every other opset."""


class ModuleOriginal(SourceModel):
    """A PyTorch module, built by its factory and filled with the artifact's weights."""

    format = Format.PYTORCH

    def __init__(self, path: Path, options: ConversionOptions, specs: tuple[TensorSpec, ...]) -> None:
        torch.set_num_threads(THREADS)
        self.path = path
        self._specs = specs
        module = _load_module(path, options)
        # Copies of one tensor in several samples must not record gradients, and dropout must be off.
        self.native = submodule(module, options.submodule).eval().requires_grad_(False)

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """See `converters.base.SourceModel.run`."""
        values, keywords = forward_arguments(self.native, inputs, self._specs)
        return call_torch(lambda *tensors: self.native(*tensors, **keywords), values, None)


class ExportOriginal(SourceModel):
    """A torch.export program."""

    format = Format.TORCH_EXPORT

    def __init__(self, path: Path) -> None:
        torch.set_num_threads(THREADS)
        self.path = path
        try:
            self.native = torch.export.load(path)
            self.module = self.native.module(check_guards=False)
            # Without guards, the module compares inputs with the program's constraints in a hook that cannot be traced.
            self.module._forward_pre_hooks.clear()
        except Exception as error:
            raise InvalidArtifactError(f"torch cannot load {path.name}: {one_line(error)}") from error
        self.inputs, self.batched = _export_inputs(self.native)

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """See `converters.base.SourceModel.run`."""
        specs = self.inputs or ()
        arguments = dict(zip([spec.name for spec in specs], example_arguments(inputs, specs), strict=True))
        args, kwargs = arrange(self.native, list(arguments.values()))
        return call_torch(lambda: self.module(*args, **kwargs), [], None)


class ModuleToOnnx(Converter):
    """Converter that uses torch.onnx.export on top of torch.export."""

    name = "pytorch-to-onnx"
    source = Format.PYTORCH
    target = Format.ONNX

    def convert(self, original: SourceModel, request: ConversionRequest) -> tuple[str, ...]:
        """See `converters.base.Converter.convert`."""
        signature, example = request.signature, request.examples[0]
        module = adapt(original.native, [spec.name for spec in signature.inputs], half=False)
        arguments = example_arguments(example, signature.inputs)
        _export_onnx(module, arguments, request, dynamic_shapes(signature, example))
        return ()


class ExportToOnnx(Converter):
    """Converter that exports the unchanged program with torch.onnx.export."""

    name = "torch-export-to-onnx"
    source = Format.TORCH_EXPORT
    target = Format.ONNX

    def convert(self, original: SourceModel, request: ConversionRequest) -> tuple[str, ...]:
        """See `converters.base.Converter.convert`."""
        _export_onnx(original.native, (), request, None)
        return ()


class ModuleToTorchScript(Converter):
    """Converter that uses torch.jit.trace, or torch.jit.script if requested."""

    name = "pytorch-to-torchscript"
    source = Format.PYTORCH
    target = Format.TORCHSCRIPT

    def convert(self, original: SourceModel, request: ConversionRequest) -> tuple[str, ...]:
        """See `converters.base.Converter.convert`."""
        if request.options.method == "script":
            if request.options.precision != "fp32":
                raise InvalidInputError("a scripted module keeps its precision; use method trace for fp16")
            request.progress("convert", "scripting the module")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scripted = torch.jit.script(original.native)
            torch.jit.save(scripted, str(request.output))
            return ()
        return _trace(original.native, request)


class ExportToTorchScript(Converter):
    """Converter that traces the program's module with torch.jit.trace."""

    name = "torch-export-to-torchscript"
    source = Format.TORCH_EXPORT
    target = Format.TORCHSCRIPT

    def convert(self, original: SourceModel, request: ConversionRequest) -> tuple[str, ...]:
        """See `converters.base.Converter.convert`."""
        assert isinstance(original, ExportOriginal)

        class Flat(torch.nn.Module):
            def __init__(self, program: Any, module: torch.nn.Module) -> None:
                super().__init__()
                self.inner = module
                self._program = program

            def forward(self, *tensors: torch.Tensor) -> Any:
                args, kwargs = arrange(self._program, list(tensors))
                return self.inner(*args, **kwargs)

        return _trace(Flat(original.native, original.module), request)


def _trace(module: torch.nn.Module, request: ConversionRequest) -> tuple[str, ...]:
    request.progress("convert", "tracing the module")
    specs = request.signature.inputs
    half = request.options.precision == "fp16"
    adapted = adapt(module, [spec.name for spec in specs], half=half)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TracerWarning)
        with torch.no_grad():
            arguments = example_arguments(request.examples[0], specs)
            traced = torch.jit.trace(adapted, arguments, check_trace=False)  # type: ignore[no-untyped-call]
    torch.jit.save(traced, str(request.output))
    if half:
        module.float()
    frozen = [w for w in caught if issubclass(w.category, TracerWarning) and "assert" not in str(w.message)]
    if frozen and request.options.precision == "fp32":
        return (
            f"tracing replaced {len(frozen)} value-dependent decisions by constants; use method script if they matter",
        )
    return ()


def _export_onnx(model: Any, arguments: tuple[Any, ...], request: ConversionRequest, shapes: Any) -> None:
    request.progress("convert", "exporting with torch.onnx (torch.export)")
    signature = request.signature
    opset = request.options.opset or EXPORT_OPSET
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                model,
                arguments,
                dynamo=True,
                verbose=False,
                opset_version=max(opset, EXPORT_OPSET),
                dynamic_shapes=shapes,
                input_names=[spec.name for spec in signature.inputs],
                output_names=[spec.name for spec in signature.outputs],
            )
        except torch.onnx.errors.OnnxExporterError as error:
            cause = error.__cause__ or error
            raise ConversionFailedError(f"torch.onnx cannot export the module: {one_line(cause)}") from error
    assert program is not None
    program.save(str(request.output), external_data=False)
    model_proto = onnx.load_model(request.output)
    finish_onnx(model_proto, request.options, signature, request.output)


def _load_module(path: Path, options: ConversionOptions) -> torch.nn.Module:
    if options.factory is None:
        return _unpickled_module(path, options)
    if not options.trust:
        raise UntrustedArtifactError(
            f"importing the factory {options.factory!r} runs its code; allow it with --trust if you trust its source"
        )
    module_name, _, name = options.factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise InvalidInputError(
            f"failed to import the factory {options.factory!r}: {error}; install its package beside the control "
            "plane, or put it on PYTHONPATH"
        ) from error
    module = factory(**options.factory_arguments)
    if not isinstance(module, torch.nn.Module):
        raise InvalidInputError(f"{options.factory!r} returned a {type(module).__name__}, not a torch.nn.Module")
    try:
        module.load_state_dict(_state_dict(path))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [one_line(error)]
        raise InvalidInputError(
            f"the weights do not fit the module of {options.factory!r}: {lines[0][:300]}"
        ) from error
    return module


def _state_dict(path: Path) -> dict[str, torch.Tensor]:
    with path.open("rb") as file:
        pickled = file.read(4) in (b"PK\x03\x04", b"\x80\x02\x8a\n")
    try:
        if pickled:
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            from safetensors.torch import load_file

            state = load_file(path)
    except Exception as error:
        raise InvalidArtifactError(f"failed to read the weights {path.name}: {one_line(error)}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # training checkpoints wrap the weights this way
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InvalidArtifactError(f"{path.name} does not contain a state dict of tensors")
    return state


def _unpickled_module(path: Path, options: ConversionOptions) -> torch.nn.Module:
    needs = (
        "a file of weights needs the function that builds their module; give --factory package.module:function, "
        "importable where the control plane runs, and --trust, because the function runs code"
    )
    if not options.trust:
        raise InvalidInputError(needs)
    try:
        module = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise InvalidInputError(f"{needs}; {path.name} is not a pickled module either: {one_line(error)}") from error
    if not isinstance(module, torch.nn.Module):
        raise InvalidInputError(f"{needs}; {path.name} contains a {type(module).__name__}")
    return module


def arrange(program: Any, tensors: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Restore the argument structure of an exported program from its flat inputs."""
    args, kwargs = torch.utils._pytree.tree_unflatten(tensors, program.call_spec.in_spec)
    return tuple(args), dict(kwargs)


def _export_inputs(program: Any) -> tuple[tuple[TensorSpec, ...], bool]:
    """Return an exported program's inputs, and whether all first dimensions are the same symbol."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    specs, firsts = [], set()
    for name in program.graph_signature.user_inputs:
        value = values.get(name)
        if not isinstance(value, torch.Tensor):
            raise InvalidInputError(
                f"the input {name!r} of the exported program is not a tensor; export it again with tensor inputs only"
            )
        shape = tuple(size if isinstance(size, int) else DYNAMIC for size in value.shape)
        specs.append(TensorSpec(name=name, dtype=dtype_of(value.dtype), shape=shape))
        firsts.add(str(value.shape[0]) if shape and shape[0] == DYNAMIC else "")
    outputs = next(node for node in program.graph.nodes if node.op == "output").args[0]
    for node in outputs:
        value = getattr(node, "meta", {}).get("val")
        leading = value.shape[0] if isinstance(value, torch.Tensor) and value.ndim else 0
        firsts.add("" if isinstance(leading, int) else str(leading))
    return tuple(specs), len(firsts) == 1 and "" not in firsts
