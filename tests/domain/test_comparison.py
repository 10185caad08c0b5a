import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from controlplane.domain.arrays import Array
from controlplane.domain.comparison import compare, worst
from controlplane.domain.tolerance import OutputComparison, Tolerance

floats = hnp.arrays(np.float64, hnp.array_shapes(min_dims=0, max_dims=2, max_side=4))
tolerance = st.builds(Tolerance, absolute=st.floats(0, 10), relative=st.floats(0, 1))


def one(actual: Array | None, expected: Array, allowed: Tolerance | None = None) -> OutputComparison:
    answer = {} if actual is None else {"y": actual}
    (comparison,) = compare(answer, {"y": expected}, {"y": allowed} if allowed else {})
    return comparison


@given(floats, tolerance)
def test_equal_values_agree_for_every_type(array: Array, allowed: Tolerance) -> None:
    comparison = one(array.copy(), array, allowed)
    assert comparison.agrees
    assert comparison.max_absolute_error == 0
    assert comparison.reason == ""


@given(st.data(), tolerance)
def test_the_rule_is_that_of_numpy(data: st.DataObject, allowed: Tolerance) -> None:
    expected = data.draw(floats)
    actual = data.draw(hnp.arrays(np.float64, expected.shape))
    with np.errstate(all="ignore"):
        want = np.isclose(actual, expected, rtol=allowed.relative, atol=allowed.absolute, equal_nan=True).all()
    assert one(actual, expected, allowed).agrees == want


def test_a_relative_error_beyond_all_numbers_is_json_too() -> None:
    comparison = one(np.array(1.0), np.array(2.2e-311), Tolerance(absolute=1.0, relative=0.0))
    assert comparison.agrees
    assert OutputComparison.model_validate_json(comparison.model_dump_json()) == comparison


@given(st.data(), tolerance)
def test_every_report_is_json_and_says_why(data: st.DataObject, allowed: Tolerance) -> None:
    expected = data.draw(floats)
    actual = data.draw(floats)
    comparison = one(actual, expected, allowed)
    assert OutputComparison.model_validate_json(comparison.model_dump_json()) == comparison
    json.loads(comparison.model_dump_json())
    assert comparison.agrees == (comparison.reason == "")
    assert comparison.max_absolute_error >= 0
    assert comparison.max_relative_error >= 0


@given(hnp.arrays(np.int64, 3), hnp.arrays(np.int64, 3))
def test_integers_must_be_equal_to_the_last_bit(actual: Array, expected: Array) -> None:
    assert one(actual, expected).agrees == bool((actual == expected).all())


def test_large_integers_are_not_compared_as_floats() -> None:
    assert not one(np.array([2**53 + 1]), np.array([2**53])).agrees
    assert not one(np.array([2**64 - 1], np.uint64), np.array([2**64 - 2], np.uint64)).agrees


@pytest.mark.parametrize(
    ("actual", "expected", "agrees"),
    [
        (np.nan, np.nan, True),
        (np.inf, np.inf, True),
        (np.inf, -np.inf, False),
        (np.nan, 1.0, False),
        (1.0, np.nan, False),
        (np.inf, 1e308, False),
        (1e308, np.inf, False),
        (-0.0, 0.0, True),
    ],
)
def test_nan_and_infinity_are_compared(actual: float, expected: float, agrees: bool) -> None:
    assert one(np.array([actual]), np.array([expected])).agrees == agrees


@pytest.mark.parametrize(
    ("dtype", "near", "far"), [("float64", 1e-6, 1e-3), ("float32", 1e-4, 1e-2), ("float16", 1e-2, 0.1)]
)
def test_each_type_has_its_tolerance(dtype: str, near: float, far: float) -> None:
    expected = np.ones(4, dtype)
    assert one((expected + near).astype(dtype), expected).agrees
    assert not one((expected + far).astype(dtype), expected).agrees


def test_the_errors_are_measured() -> None:
    comparison = one(np.array([1.0, 2.2, 0.5]), np.array([1.0, 2.0, 0.0]), Tolerance(absolute=1, relative=0))
    assert comparison.agrees
    assert comparison.max_absolute_error == pytest.approx(0.5)
    assert comparison.max_relative_error == pytest.approx(0.1)  # where the expected value is not 0


def test_difference_is_reported_with_values() -> None:
    comparison = one(np.array([1.0, 9.0]), np.array([1.0, 2.0]))
    assert "'y'" in comparison.reason
    assert "1 of 2 elements" in comparison.reason
    assert "largest absolute error 7" in comparison.reason


def test_missing_output_or_other_shape_or_type_differs() -> None:
    expected = np.zeros((2, 3), np.float32)
    assert one(None, expected).reason == "output 'y' is missing"
    assert "shape [3, 2], expected [2, 3]" in one(expected.T, expected).reason
    assert "dtype" in one(np.full((2, 3), b"x", object), expected).reason
    assert one(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)).agrees


def test_unrecorded_outputs_are_ignored() -> None:
    assert compare({"y": np.ones(1), "z": np.ones(1)}, {"y": np.ones(1)}, {})[0].agrees


def test_strings_must_be_equal() -> None:
    expected = np.array([b"a", "ä".encode()], object)
    assert one(np.array(["a", "ä"], object), expected).agrees
    comparison = one(np.array([b"a", b"b"], object), expected)
    assert not comparison.agrees
    assert comparison.max_absolute_error == 0.5
    assert "1 of 2 strings" in comparison.reason


def test_booleans_must_be_equal() -> None:
    assert one(np.array([True, False]), np.array([True, False])).agrees
    assert not one(np.array([True, True]), np.array([True, False])).agrees


def test_the_worst_of_several_samples_is_kept() -> None:
    allowed = {"y": Tolerance(absolute=1, relative=0)}
    good = compare({"y": np.array([0.5])}, {"y": np.array([0.0])}, allowed)
    bad = compare({"y": np.array([5.0])}, {"y": np.array([0.0])}, allowed)
    (joined,) = worst((*good, *bad, *good))
    assert not joined.agrees
    assert joined.max_absolute_error == 5
    assert joined.reason == bad[0].reason
    assert worst(()) == ()
    assert {c.output for c in worst((*good, *compare({"z": np.ones(1)}, {"z": np.ones(1)}, {})))} == {"y", "z"}
