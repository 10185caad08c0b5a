"""Unusual ONNX files are published with samples, or with the reason why Triton cannot serve them."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from controlplane.domain.samples import Sample
from controlplane.domain.signature import DataType, Signature, TensorSpec
from controlplane.errors import InvalidInputError
from converters.golden_samples import record, validate
from converters.jobs import RecordJob, RecordResult, ValidateJob, ValidationReport
from tests.cases import onnx_inputs as cases

Make = Callable[[], onnx.ModelProto]


def recorded(folder: Path, make: Make, signature: Signature | None = None, *samples: Sample) -> RecordResult:
    job = RecordJob(source=cases.write(folder, make), signature=signature, samples=samples)
    return record(job, lambda _stage, _message: None)


def validated(folder: Path, make: Make, signature: Signature | None = None) -> ValidationReport:
    job = ValidateJob(source=cases.write(folder, make), signature=signature)
    return validate(job, lambda _stage, _message: None)


def tensors(result: RecordResult) -> list[str]:
    assert result.signature is not None
    return [str(spec) for spec in (*result.signature.inputs, *result.signature.outputs)]


@pytest.mark.parametrize(
    ("make", "expected", "batched"),
    [
        (cases.output_without_shape, ["x FP32[?,3]", "y FP32[?,3]"], True),
        (cases.output_without_rank, ["x FP32[?,3]", "y FP32[?,3]"], True),
        (cases.names_of_600_letters, ["x" * 600 + " FP32[?,3]", "y" * 600 + " FP32[?,3]"], True),
        (cases.tied_dimensions, ["a FP32[?,?]", "b FP32[?,2]", "y FP32[?,2]"], False),
        (
            cases.sums_of_dimensions,
            ["past FP32[?,?]", "new FP32[?,?]", "mask FP32[?,?]", "y FP32[?,?]"],
            True,
        ),
        (cases.fixed_size_inside, ["img UINT8[?,3,?,?]", "y FP32[?,3,8,8]"], False),
        (cases.small_vocabulary, ["ids INT32[?,?]", "y FP32[?,?,2]"], True),
        (cases.wrong_output_shape, ["x FP32[4,3]", "axes INT64[1]", "y FP32[?]"], False),
        (cases.mixed_rows, ["x FP32[?,3]", "y FP32[?,3]"], False),
    ],
)
def test_samples_are_found(tmp_path: Path, make: Make, expected: list[str], batched: bool) -> None:
    result = recorded(tmp_path, make)
    assert result.samples, result.warnings
    assert (result.unservable, tensors(result)) == (None, expected)
    assert result.signature is not None
    assert result.signature.batched is batched
    report = validated(tmp_path, make)
    assert report.ok, report.checks
    assert report.signature == result.signature


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            cases.input_without_shape,
            r"input 'x' has no shape in the file; give the signature, for example --input 'x:FP32",
        ),
        (cases.rank_depends_on_data, r"number of dimensions of output 'y' depends on the data \(0 or 2\)"),
        (cases.no_inputs, "the model has no inputs"),
        (cases.names_of_2000_letters, "has 2000 characters; the limit is 1024"),
        (cases.sequence_output, "output 'y' is a sequence, but Triton supports only tensors; export"),
        (cases.zip_map_output, r"output 'p' is a list of dictionaries.*ZipMap.*zipmap=False"),
        (cases.optional_input, "input 'o' is optional, but Triton supports only tensors; export"),
        (
            cases.bf16_tensors,
            "input 'x' has the element type BFLOAT16, which neither Triton's ONNX Runtime backend nor the embedded "
            "server supports",
        ),
        (cases.fp8_tensors, "input 'x' has the element type FLOAT8E4M3FN, which Triton's protocol does not support"),
    ],
)
def test_unservable_model_is_reported_with_the_reason(tmp_path: Path, make: Make, reason: str) -> None:
    result = recorded(tmp_path, make)
    assert not result.samples
    assert result.unservable is not None
    assert re.search(reason, result.unservable)
    report = validated(tmp_path, make)
    assert not report.ok
    assert [check.name for check in report.checks if not check.ok] == ["servable"]
    assert re.search(reason, report.checks[-1].message)


def test_an_input_without_shape_is_served_once_its_signature_is_known(tmp_path: Path) -> None:
    x, y = (TensorSpec(name=name, dtype=DataType.FP32, shape=(-1, 3)) for name in "xy")
    given = Signature(inputs=(x,), outputs=(y,), batched=True)
    result = recorded(tmp_path, cases.input_without_shape, given)
    assert (result.unservable, result.signature, len(result.samples)) == (None, given, 3)
    assert validated(tmp_path, cases.input_without_shape, given).ok
    sample = Sample({"x": np.ones((2, 3), np.float32)}, {})
    learnt = recorded(tmp_path, cases.input_without_shape, None, sample)
    assert learnt.unservable is None
    assert tensors(learnt) == ["x FP32[2,3]", "y FP32[2,3]"]


def test_large_outputs_are_recorded_with_fewer_samples(tmp_path: Path) -> None:
    result = recorded(tmp_path, cases.output_of_64_mb)
    (sample,) = result.samples
    assert sample.outputs["y"].shape == (1, 16_000_000)


def test_given_samples_that_are_too_large_are_left_out_with_a_note(tmp_path: Path) -> None:
    large, small = (Sample({"x": np.ones((rows, 1), np.float32)}, {}) for rows in (2, 1))
    result = recorded(tmp_path, cases.output_of_64_mb, None, large, small)
    assert [sample.inputs["x"].shape for sample in result.samples] == [(1, 1)]
    assert "only 1 of 2 golden samples are kept: the limit is 64 MiB" in result.warnings[-1]
    none = recorded(tmp_path, cases.output_of_64_mb, None, large)
    assert not none.samples
    assert "no golden samples: the limit is 64 MiB" in none.warnings[-1]


def test_a_wrong_output_shape_is_corrected_and_reported(tmp_path: Path) -> None:
    generated = recorded(tmp_path, cases.wrong_output_shape)
    assert any("declares the output y FP32[7], but the model returns FP32[" in note for note in generated.warnings)
    sample = Sample({"x": np.ones((4, 3), np.float32), "axes": np.array([0])}, {})
    given = recorded(tmp_path, cases.wrong_output_shape, None, sample)
    assert tensors(given)[-1] == "y FP32[?]"
    assert any("declares the output" in hint for hint in validated(tmp_path, cases.wrong_output_shape).hints)


def test_rows_that_depend_on_each_other_are_not_batched(tmp_path: Path) -> None:
    result = recorded(tmp_path, cases.mixed_rows)
    assert result.rows_independent is False
    assert any("Triton will not batch requests for this model" in note for note in result.warnings)
    assert result.signature is not None
    stated = result.signature.model_copy(update={"batched": True})
    with pytest.raises(InvalidInputError, match="signature is batched, but the rows of a request are not independent"):
        recorded(tmp_path, cases.mixed_rows, stated)
    assert not validated(tmp_path, cases.mixed_rows, stated).ok
    assert recorded(tmp_path, cases.names_of_600_letters).rows_independent is True
