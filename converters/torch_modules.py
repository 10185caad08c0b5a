"""Adaptation of torch modules for conversion: inputs by name, a flat tuple of outputs, half precision inside."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from controlplane.domain.samples import Tensors
from controlplane.domain.signature import DYNAMIC, DataType, Signature, TensorSpec
from controlplane.errors import InvalidInputError
from converters.runtimes import flatten_outputs, to_torch


def adapt(module: torch.nn.Module, names: Sequence[str], *, half: bool) -> torch.nn.Module:
    """Wrap a module so that it takes positional tensors under the given names and returns a flat tuple.

    Args:
        module: The module; with ``half``, its weights are converted in place.
        names: Names of the inputs, which are passed by name if all are arguments of ``forward``, else by position.
        half: Compute in float16; float32 inputs and outputs are cast inside, so the signature does not change.
    """
    if half:
        module = module.half()
    own = _forward_names(module)
    by_name = bool(own) and set(names) <= set(own)

    def forward(self: Any, *tensors: torch.Tensor) -> Any:
        if half:
            tensors = tuple(t.half() if t.dtype is torch.float32 else t for t in tensors)
        answer = self.module(**dict(zip(names, tensors, strict=True))) if by_name else self.module(*tensors)
        flat = [value for _, value in flatten_outputs(answer)]
        if half:
            flat = [value.float() if value.dtype is torch.float16 else value for value in flat]
        return flat[0] if len(flat) == 1 else tuple(flat)

    # The tracer and the exporter read the argument names with inspect. TorchScript keeps them, and Triton's PyTorch
    # backend matches inputs by them.
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    parameters += [
        inspect.Parameter(name if name.isidentifier() else f"INPUT__{index}", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for index, name in enumerate(names)
    ]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    kind = type("Adapted", (torch.nn.Module,), {"forward": forward, "__module__": __name__})
    adapted: torch.nn.Module = kind()
    adapted.module = module
    # Do not call eval(): the module is already in its mode, and an exported module does not allow changing it.
    adapted.training = False
    return adapted


def _forward_names(module: torch.nn.Module) -> list[str]:
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}]


def forward_arguments(
    module: torch.nn.Module, tensors: Tensors, specs: Sequence[TensorSpec]
) -> tuple[list[Any], dict[str, Any]]:
    """Return arguments for ``module``: keywords if all names are arguments of ``forward``, else positional ones."""
    dtypes = {spec.name: spec.dtype for spec in specs}
    values = {name: to_torch(array, dtypes.get(name)) for name, array in tensors.items()}
    own = _forward_names(module)
    if own and set(values) <= set(own):
        return [], values
    return list(values.values()), {}


def example_arguments(example: Tensors, specs: Sequence[TensorSpec]) -> tuple[torch.Tensor, ...]:
    """Return an example's tensors in the order of the specs."""
    return tuple(to_torch(example[spec.name], spec.dtype) for spec in specs)


def dynamic_shapes(signature: Signature, example: Tensors) -> tuple[dict[int, Any], ...] | None:
    """Return torch.export's ``dynamic_shapes`` for the signature's inputs, in order; None if all are static.

    The first dimensions of a batched signature share one `torch.export.Dim`; the exporter determines the bounds of the
    other dimensions.
    """
    batch = torch.export.Dim("batch", min=1) if signature.batched else None
    shapes: list[dict[int, Any]] = []
    for spec in signature.inputs:
        axes: dict[int, Any] = {}
        for axis, size in enumerate(spec.shape):
            if size == DYNAMIC:
                axes[axis] = batch if batch is not None and axis == 0 else torch.export.Dim.DYNAMIC
                if example[spec.name].shape[axis] < 2:
                    raise InvalidInputError(
                        f"dimension {axis} of {spec.name!r} is dynamic, but the first sample has size "
                        f"{example[spec.name].shape[axis]} there, which torch.export treats as a constant; give a "
                        "sample with 2 or more"
                    )
        shapes.append(axes)
    return tuple(shapes) if any(shapes) else None


def submodule(module: torch.nn.Module, name: str | None) -> torch.nn.Module:
    """Return a submodule by its dotted name.

    Raises:
        InvalidInputError: The module has no such submodule.
    """
    if name is None:
        return module
    try:
        part = module
        for step in name.split("."):  # ScriptModules have no get_submodule
            part = getattr(part, step)
    except AttributeError as error:
        names = sorted(part for part, _ in module.named_children())
        raise InvalidInputError(f"the module has no submodule {name!r}; it has {names[:20]}") from error
    return part


def dtype_of(dtype: torch.dtype) -> DataType:
    """Return the protocol's type of a torch dtype.

    Raises:
        InvalidInputError: The protocol has no such type.
    """
    if dtype is torch.bfloat16:
        return DataType.BF16
    try:
        return DataType.of(torch.empty(0, dtype=dtype).numpy())
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"tensors of type {dtype} cannot be sent to Triton") from error
