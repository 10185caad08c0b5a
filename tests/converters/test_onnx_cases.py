"""A subset of the onnx package's single-operator cases, published and served by a real Triton."""

import re

import pytest

from tests.onnx_cases import run

# Reasons outside of this project for which a case may fail. ONNX Runtime's Attention kernel, for example, rejects an
# attn_mask that is shorter than the keys, which the operator's specification allows
# (microsoft/onnxruntime, pull request 27542).
_OUTSIDE = re.compile(
    r"is a sequence|is optional|has the element type|has no inputs|onnxruntime cannot load|"
    r"ONNX Runtime itself (gives|refuses)"
)


@pytest.mark.long
@pytest.mark.triton
@pytest.mark.timeout(1800)
def test_cases_give_stored_answers_or_report_why_not() -> None:
    results = run(40, 3, with_triton=True)
    assert [result for result in results if not result.answers and not _OUTSIDE.search(result.why)] == []
    # Triton must load exactly the models that pass validation.
    assert [result for result in results if result.validates != result.loads] == []
    assert sum(result.samples > 0 for result in results) > 0.7 * len(results)
