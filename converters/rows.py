"""Check that the rows of a batch are independent; only then may Triton batch requests."""

from collections.abc import Mapping

import numpy as np

from controlplane.domain.arrays import Array
from controlplane.domain.samples import Tensors
from converters.runtimes import Run, RunError

_ROWS_ALONE = 3
"""Number of rows of one sample that are run alone: the first, the middle and the last."""


def rows_problem(run: Run, inputs: Tensors, outputs: Mapping[str, Array], *, quantised: bool = False) -> str | None:
    """Return why the rows of a request are not independent of each other; None if they are.

    Args:
        run: The model.
        inputs: A sample's inputs, with equal first dimensions.
        outputs: The answer to them.
        quantised: Whether the model scales its activations by their range, which the other rows change slightly. An
            output may then deviate by 10 % of its largest value plus 10 % of the element, as for int8 in
            `converters.parity`, and integers may differ.
    """
    if any(array.ndim == 0 for array in inputs.values()):
        return "an input has no dimensions, so it has no rows"
    count = next(iter(inputs.values())).shape[0]
    if any(array.shape[0] != count for array in inputs.values()):
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
        return f"the inputs have different numbers of rows: {shapes}"
    if count == 1:
        inputs = {name: np.concatenate([array, _companion(array)]) for name, array in inputs.items()}
        try:
            outputs = run(inputs)
        except RunError as error:
            return f"the model accepts one row but rejects two: {error}"
        count = 2
    for name, array in outputs.items():
        if array.shape[:1] != (count,):
            return f"output {name!r} has the shape {list(array.shape)} for {count} rows"
    for row in sorted({0, count // 2, count - 1})[:_ROWS_ALONE]:
        try:
            alone = run({name: array[row : row + 1] for name, array in inputs.items()})
        except RunError as error:
            return f"the model accepts {count} rows but rejects one of them alone: {error}"
        for name, array in outputs.items():
            if not _alike(alone[name], array[row : row + 1], quantised=quantised):
                return f"the output {name!r} of a row depends on the other rows of the request"
    return None


def _companion(array: Array) -> Array:
    """Return another row, with values that the model should accept like those of the given row."""
    if array.dtype.kind == "f":
        return np.asarray(array * 0.5 + 1, dtype=array.dtype)
    return np.asarray(array.reshape(-1)[::-1].reshape(array.shape))


def _alike(left: Array, right: Array, *, quantised: bool) -> bool:
    if left.shape != right.shape:
        return False
    if right.dtype.kind != "f":
        return quantised or bool(np.array_equal(left, right))
    relative, absolute = (1e-2, 1e-2) if right.dtype == np.float16 else (1e-3, 1e-4)
    if quantised:
        finite = right[np.isfinite(right)]
        relative, absolute = 0.1, max(0.1 * float(np.abs(finite).max(initial=0.0)), absolute)
    return bool(np.allclose(left, right, rtol=relative, atol=absolute, equal_nan=True))
