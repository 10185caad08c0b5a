"""TorchScript files as Triton's own PyTorch backend runs them: reasons for rejection, and the mode they run in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlplane.domain.manifest import Format
from controlplane.domain.portability import Loads, ModelFacts, check, image_target
from controlplane.domain.samples import Sample, check_samples
from controlplane.domain.signature import Signature, TensorSpec
from controlplane.errors import InvalidArtifactError, InvalidInputError
from converters.jobs import ConvertJob, RecordJob, ValidateJob
from converters.options import ConversionOptions
from tests.cases.torchscript_inputs import X, write

Do = Callable[[Any], Any]


def given(*arrays: np.ndarray[Any, Any], **named: np.ndarray[Any, Any]) -> tuple[Sample, ...]:
    return tuple(Sample({"x": array}, {}) for array in arrays) or (Sample(dict(named), {}),)


def signature(
    inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]], *, batched: bool = False
) -> Signature:
    def specs(tensors: dict[str, tuple[int, ...]]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec.model_validate({"name": n, "dtype": "FP32", "shape": s}) for n, s in tensors.items())

    return Signature(inputs=specs(inputs), outputs=specs(outputs), batched=batched)


def shapes(found: Signature) -> list[str]:
    return [str(spec) for spec in (*found.inputs, *found.outputs)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dict-output", "forward returns Dict[str, Tensor]"),
        ("list-output", "forward returns Tuple[Tensor, List[Tensor]]"),
        ("number-output", "forward returns Tuple[Tensor, float]"),
        ("scalar-output", "the output OUTPUT__0 FP32[] has no dimensions"),
        ("optional-argument", "bias (Optional[Tensor])"),
    ],
)
def test_unservable_module_is_rejected_with_advice(do: Do, tmp_path: Path, name: str, words: str) -> None:
    result = do(RecordJob(source=write(tmp_path, name), samples=given(X)))
    assert words in result.unservable
    assert "wrap" in result.unservable
    facts = ModelFacts.of(Format.TORCHSCRIPT, result.inspection.attributes, result.signature)
    assert check(facts, image_target("26.08")).loads is Loads.NO
    report = do(ValidateJob(source=tmp_path / f"{name}.pt", samples=given(X)))
    assert [check.message for check in report.checks if not check.ok] == [result.unservable]
    assert do(RecordJob(source=tmp_path / f"{name}.pt", samples=given(X), run=False)).unservable


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("dict-output", {"logits__0": X * 2, "mask__1": X > 0}),
        ("list-output", {"OUTPUT__0": X * 2, "OUTPUT__1": X, "OUTPUT__2": X + 1}),
        ("number-output", {"OUTPUT__0": X * 2, "OUTPUT__1": np.array([0.5], np.float32)}),
        ("scalar-output", {"OUTPUT__0": np.array([5], np.float32)}),
    ],
)
def test_converting_it_to_torchscript_makes_it_servable(
    do: Do, tmp_path: Path, name: str, outputs: dict[str, np.ndarray[Any, Any]]
) -> None:
    recorded = do(RecordJob(source=write(tmp_path, name), samples=given(X)))
    job = ConvertJob(
        source=tmp_path / f"{name}.pt",
        signature=recorded.signature,
        samples=recorded.samples or given(X),
        options=ConversionOptions(target=Format.TORCHSCRIPT),
        output_dir=tmp_path / "out",
    )
    converted = do(job)
    assert list(converted.samples[0].outputs) == list(outputs)
    for key, array in outputs.items():
        np.testing.assert_array_equal(converted.samples[0].outputs[key], array)
    again = do(
        RecordJob(source=tmp_path / "out" / "model.pt", signature=converted.signature, samples=converted.samples)
    )
    assert again.unservable is None
    recorded_types = {key: again.inspection.attributes[key] for key in ("arguments", "returns")}
    assert recorded_types == {"arguments": {"x": "Tensor"}, "returns": ["Tensor"] * len(outputs)}
    assert recorded_types.items() <= converted.attributes.items()
    check_samples(again.samples, converted.signature)


def test_a_number_as_argument_is_refused_and_converted(do: Do, tmp_path: Path) -> None:
    samples = given(x=X, times=np.array([3]))
    source = write(tmp_path, "number-argument")
    recorded = do(RecordJob(source=source, samples=samples))
    assert "times (int); convert this version to torchscript" in recorded.unservable
    job = ConvertJob(
        source=source, samples=samples, options=ConversionOptions(target=Format.TORCHSCRIPT), output_dir=tmp_path / "o"
    )
    converted = do(job)
    assert do(RecordJob(source=tmp_path / "o" / "model.pt", signature=converted.signature)).unservable is None


def test_a_dictionary_as_argument_gets_the_inputs_by_its_keys(do: Do, tmp_path: Path) -> None:
    result = do(RecordJob(source=write(tmp_path, "dict-argument"), samples=given(left=X, right=X + 1)))
    assert result.unservable is None
    assert shapes(result.signature)[:2] == ["left FP32[2,3]", "right FP32[2,3]"]
    np.testing.assert_array_equal(result.samples[0].outputs["OUTPUT__0"], -np.ones((2, 3), np.float32))


def test_a_file_without_signature_says_what_to_add_for_its_own_arguments(do: Do, tmp_path: Path) -> None:
    source = write(tmp_path, "no-signature")
    for result in (do(RecordJob(source=source)), do(RecordJob(source=source, run=False))):
        assert "numpy.savez('samples.npz', a=…, b=…)" in result.unservable
        assert '--input "a:FP32[-1,3]" --input "b:FP32[-1,3]"' in result.unservable
        assert '--out "OUTPUT__0:FP32[-1,3]" --out "OUTPUT__1:FP32[-1,3]"' in result.unservable
    report = do(ValidateJob(source=source))
    assert [check.name for check in report.checks if not check.ok] == ["servable"]


def test_an_argument_with_a_default_must_be_an_input(do: Do, tmp_path: Path) -> None:
    said = signature({"a": (-1, 3)}, {"OUTPUT__0": (-1, 3), "OUTPUT__1": (-1,)})
    result = do(RecordJob(source=write(tmp_path, "no-signature"), signature=said, run=False))
    assert "give b as inputs" in result.unservable


@pytest.mark.parametrize("name", ["training-dropout", "training-norm", "traced-training-norm"])
def test_push_warns_about_training_mode(do: Do, tmp_path: Path, name: str) -> None:
    result = do(RecordJob(source=write(tmp_path, name), samples=given(X)))
    assert result.unservable is None
    (note,) = [warning for warning in result.warnings if "training mode" in warning]
    assert "dropout" in note or "norm" in note
    assert any(
        "training mode" in hint for hint in do(ValidateJob(source=tmp_path / f"{name}.pt", samples=given(X))).hints
    )
    if name == "training-dropout":
        assert result.samples == ()
        assert any("answers the same input differently in two runs" in warning for warning in result.warnings)


def test_golden_samples_of_a_training_module_use_training_mode(do: Do, tmp_path: Path) -> None:
    for name in ("training-norm", "traced-training-norm"):
        (sample,) = do(RecordJob(source=write(tmp_path, name), samples=given(X))).samples
        by_the_batch = (X - X.mean(0)) / np.sqrt(X.var(0) + 1e-5)
        np.testing.assert_allclose(sample.outputs["OUTPUT__0"], by_the_batch, rtol=1e-3)


def test_a_module_that_does_not_read_its_mode_is_not_warned_about(do: Do, tmp_path: Path) -> None:
    """torch.jit.script leaves a module in training mode if its author forgot eval()."""
    assert do(RecordJob(source=write(tmp_path, "doubled"), samples=given(X))).warnings == ()


def test_converting_a_module_in_training_mode_saves_it_in_evaluation_mode(do: Do, tmp_path: Path) -> None:
    job = ConvertJob(
        source=write(tmp_path, "training-dropout"),
        samples=given(X),
        options=ConversionOptions(target=Format.TORCHSCRIPT),
        output_dir=tmp_path / "o",
    )
    converted = do(job)
    assert converted.warnings == ("the original was saved in training mode; the result is in evaluation mode",)
    again = do(RecordJob(source=tmp_path / "o" / "model.pt", samples=converted.samples))
    assert again.warnings == ()
    np.testing.assert_array_equal(again.samples[0].outputs["OUTPUT__0"], converted.samples[0].outputs["OUTPUT__0"])


def test_declared_batch_makes_the_first_dimension_dynamic(do: Do, tmp_path: Path) -> None:
    source = write(tmp_path, "doubled")
    for rows in (1, 2):
        result = do(RecordJob(source=source, samples=given(X[:rows]), batched=True))
        assert result.signature.batched
        assert shapes(result.signature) == ["x FP32[?,3]", "OUTPUT__0 FP32[?,3]"]
    assert shapes(do(RecordJob(source=source, samples=given(X))).signature) == ["x FP32[2,3]", "OUTPUT__0 FP32[2,3]"]


@pytest.mark.parametrize(
    ("name", "rows", "words"),
    [
        ("dependent-rows", 1, "the output 'OUTPUT__0' of a row depends on the other rows"),
        ("dependent-rows", 2, "the output 'OUTPUT__0' of a row depends on the other rows"),
        ("positive", 2, r"output 'OUTPUT__0' has the shape \[4\] for 2 rows"),
    ],
)
def test_batch_declaration_contradicted_by_answers_is_rejected(
    do: Do, tmp_path: Path, name: str, rows: int, words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words):
        do(RecordJob(source=write(tmp_path, name), samples=given(X[:rows]), batched=True))


def test_an_empty_output_of_a_sample_leaves_its_size_open(do: Do, tmp_path: Path) -> None:
    result = do(RecordJob(source=write(tmp_path, "positive"), samples=given(-np.ones((2, 3), np.float32))))
    assert shapes(result.signature) == ["x FP32[2,3]", "OUTPUT__0 FP32[?]"]


def test_outputs_get_names_by_which_triton_finds_them(do: Do, tmp_path: Path) -> None:
    said = signature({"a": (-1, 3), "b": (-1, 3)}, {"total": (-1, 3), "dot": (-1,)}, batched=True)
    result = do(RecordJob(source=write(tmp_path, "no-signature"), signature=said))
    assert [spec.name for spec in result.signature.outputs] == ["total__0", "dot__1"]
    assert "the outputs are named total__0, dot__1" in result.warnings[0]
    check_samples(result.samples, result.signature)
    turned = signature({"a": (-1, 3), "b": (-1, 3)}, {"dot__1": (-1,), "total__0": (-1, 3)}, batched=True)
    result = do(RecordJob(source=tmp_path / "no-signature.pt", signature=turned))
    assert result.signature == turned
    check_samples(result.samples, turned)


def test_onnx_declared_batched_needs_a_dynamic_first_dimension(do: Do, models: Any, tmp_path: Path) -> None:
    assert do(RecordJob(source=models.mlp_onnx, batched=False)).signature.batched is False
    assert do(RecordJob(source=models.mlp_onnx, batched=True)).signature.batched is True
    import onnx

    from tests.converters.conftest import mlp_onnx

    onnx.save_model(mlp_onnx(2), tmp_path / "fixed.onnx")  # type: ignore[arg-type]
    with pytest.raises(
        InvalidArtifactError, match=r"the first dimension of x FP32\[2,4\] is fixed at 2; export it again"
    ):
        do(RecordJob(source=tmp_path / "fixed.onnx", batched=True))
