"""Comparison of outputs: the single rule for parity after a conversion and for the proof after a load.

An element agrees if ``|actual - expected| <= absolute + relative * |expected|``, the rule of ``numpy.isclose``
(https://numpy.org/doc/stable/reference/generated/numpy.isclose.html), where two NaN, and two infinities of the same
sign, agree. Strings must be equal, and so must integers and booleans unless a tolerance is given for them.
"""

from collections.abc import Mapping

import numpy as np

from controlplane.domain.arrays import Array
from controlplane.domain.samples import Tensors
from controlplane.domain.signature import DataType
from controlplane.domain.tolerance import OutputComparison, Tolerance

# float32 accumulates about 1e-7 a step and backends sum in different orders; the 16-bit types have 11 and 8
# significant bits. Exact types have no tolerance.
DEFAULT_TOLERANCES: Mapping[DataType, Tolerance] = {
    DataType.FP64: Tolerance(absolute=1e-6, relative=1e-5),
    DataType.FP32: Tolerance(absolute=1e-4, relative=1e-3),
    DataType.FP16: Tolerance(absolute=1e-2, relative=1e-2),
    DataType.BF16: Tolerance(absolute=5e-2, relative=5e-2),
}
EXACT = Tolerance(absolute=0.0, relative=0.0)


def compare(actual: Tensors, expected: Tensors, tolerances: Mapping[str, Tolerance]) -> tuple[OutputComparison, ...]:
    """Compare every expected output.

    Args:
        actual: The actual values, by output name.
        expected: The recorded values, by output name.
        tolerances: By output name; if missing, the default of the expected array's type.
    """
    return tuple(_compare_one(name, actual.get(name), want, tolerances.get(name)) for name, want in expected.items())


def worst(comparisons: tuple[OutputComparison, ...]) -> tuple[OutputComparison, ...]:
    """Merge the comparisons of several samples: one per output, with the largest errors, agreeing only if all agree."""
    joined: dict[str, OutputComparison] = {}
    for comparison in comparisons:
        before = joined.get(comparison.output)
        joined[comparison.output] = (
            comparison
            if before is None
            else comparison.model_copy(
                update={
                    "max_absolute_error": max(before.max_absolute_error, comparison.max_absolute_error),
                    "max_relative_error": max(before.max_relative_error, comparison.max_relative_error),
                    "agrees": before.agrees and comparison.agrees,
                    "reason": before.reason or comparison.reason,
                }
            )
        )
    return tuple(joined.values())


def _compare_one(name: str, actual: Array | None, expected: Array, tolerance: Tolerance | None) -> OutputComparison:
    dtype = DataType.of(expected)
    applied = tolerance or DEFAULT_TOLERANCES.get(dtype, EXACT)

    def differs(reason: str, absolute: float = float("inf"), relative: float = float("inf")) -> OutputComparison:
        return OutputComparison(
            output=name,
            tolerance=applied,
            max_absolute_error=min(absolute, _LARGEST),
            max_relative_error=min(relative, _LARGEST),
            agrees=False,
            reason=reason,
        )

    if actual is None:
        return differs(f"output {name!r} is missing")
    if actual.shape != expected.shape:
        return differs(f"output {name!r} has shape {list(actual.shape)}, expected {list(expected.shape)}")
    if dtype is DataType.BYTES:
        unequal = sum(_raw(a) != _raw(b) for a, b in zip(actual.reshape(-1), expected.reshape(-1), strict=True))
        if unequal:
            return differs(f"output {name!r}: {unequal} of {expected.size} strings differ", unequal / expected.size, 0)
        return _agree(name, applied, 0.0, 0.0)
    if actual.dtype.kind not in "biuf":
        return differs(f"output {name!r} has dtype {actual.dtype}, expected {expected.dtype}")
    left, right = actual.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        # Integers are compared exactly: float64 has fewer bits than int64.
        same = (left == right) | (np.isnan(left) & np.isnan(right)) if dtype.is_float else actual == expected
        error = np.where(same, 0.0, np.abs(left - right))
        error = np.where(np.isnan(error), np.inf, error)
        nonzero = (np.abs(right) > 0) & np.isfinite(right)
        relative_error = np.where(nonzero, error / np.where(nonzero, np.abs(right), 1.0), 0.0)
        allowed = applied.absolute + applied.relative * np.where(np.isfinite(right), np.abs(right), 0.0)
        # Without a tolerance only equality counts: two different large integers can be the same float64.
        outside = ~same & ~((error <= allowed) & (allowed > 0))
    largest = float(error.max(initial=0.0))
    largest_relative = float(relative_error.max(initial=0.0))
    if outside.any():
        return differs(
            f"output {name!r}: {int(outside.sum())} of {expected.size} elements are outside the tolerance "
            f"(largest absolute error {largest:.3g}, relative {largest_relative:.3g}; allowed {applied.absolute:g} "
            f"absolute plus {applied.relative:g} relative)",
            largest,
            largest_relative,
        )
    return _agree(name, applied, largest, largest_relative)


_LARGEST = float(np.finfo(np.float64).max)  # JSON has no infinity


def _agree(name: str, tolerance: Tolerance, absolute: float, relative: float) -> OutputComparison:
    return OutputComparison(
        output=name,
        tolerance=tolerance,
        max_absolute_error=min(absolute, _LARGEST),
        max_relative_error=min(relative, _LARGEST),
        agrees=True,
    )


def _raw(element: object) -> bytes:
    return element if isinstance(element, bytes) else str(element).encode()
