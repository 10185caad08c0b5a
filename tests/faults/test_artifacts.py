"""Hundreds of corrupted models and samples; `make faults` runs thousands."""

from pathlib import Path

import pytest

from controlplane.domain.manifest import Format
from tests.faults.artifacts import fuzz_models, fuzz_samples, torchscript_scale
from tests.support.api import onnx_scale


@pytest.mark.long
@pytest.mark.parametrize(("kind", "count"), [(Format.ONNX, 150), (Format.TORCHSCRIPT, 80)])
def test_corrupted_model_gives_a_clean_error(tmp_path: Path, kind: Format, count: int) -> None:
    seed = onnx_scale(2) if kind is Format.ONNX else torchscript_scale()
    findings = fuzz_models(tmp_path, kind, seed, count, derandomize=True)
    assert findings.violations == []
    assert findings.cases >= count // 2
    assert set(findings.outcomes) != {"accepted"}


def test_corrupted_samples_give_a_clean_error(tmp_path: Path) -> None:
    findings = fuzz_samples(tmp_path, 400, derandomize=True)
    assert findings.violations == []
    assert findings.cases >= 400
