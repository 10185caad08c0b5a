"""A part of the onnx package's single-operator cases, published and served by a real Triton."""

import re

import pytest

from tests.onnx_cases import run

# Reasons for which a case may fail that lie outside of this project.
_OUTSIDE = re.compile(
    r"is a sequence|is optional|has the element type|has no inputs|onnxruntime cannot load|ONNX Runtime itself gives"
)


@pytest.mark.long
@pytest.mark.triton
@pytest.mark.timeout(1800)
def test_cases_answer_as_stored_or_say_why_they_cannot() -> None:
    results = run(40, 3, with_triton=True)
    assert [result for result in results if not result.answers and not _OUTSIDE.search(result.why)] == []
    # What passes validation is what Triton loads.
    assert [result for result in results if result.validates != result.loads] == []
    assert sum(result.samples > 0 for result in results) > 0.7 * len(results)
