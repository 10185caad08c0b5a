"""The short version: each store fault once, on moto; `make faults` injects them more often, on Ceph."""

from collections.abc import Iterator

import pytest

from tests.faults.cases import Case, inject, quick
from tests.faults.stage import Stage, stage_with_own_triton
from tests.faults.store_cases import store_cases
from tests.support.s3server import S3Server

pytestmark = [pytest.mark.triton, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def stage(moto: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage_with_own_triton(moto, tmp_path_factory.mktemp("stage")) as running:
        yield running


@pytest.mark.parametrize("case", quick(store_cases(long=False)), ids=lambda case: case.name)
def test_store_fault_breaks_no_invariant(stage: Stage, case: Case) -> None:
    row = inject(stage, case, case.quick)
    assert row.violations == []
    assert len(row.heal_seconds) == case.quick
