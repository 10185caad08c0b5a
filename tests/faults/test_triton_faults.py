"""The short version: each fault of Triton once; `make faults` injects them more often."""

from collections.abc import Iterator

import pytest

from tests.faults.cases import Case, inject, quick
from tests.faults.stage import Stage, stage_with_own_triton
from tests.faults.triton_cases import triton_cases

pytestmark = [pytest.mark.triton, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage_with_own_triton(None, tmp_path_factory.mktemp("stage")) as running:
        yield running


@pytest.mark.parametrize("case", quick(triton_cases()), ids=lambda case: case.name)
def test_triton_fault_breaks_no_invariant(stage: Stage, case: Case) -> None:
    row = inject(stage, case, case.quick)
    assert row.violations == []
    assert len(row.heal_seconds) == case.quick
