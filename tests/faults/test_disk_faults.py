"""Full disks, once each. They need a small file system, so they run only where one can be mounted."""

from collections.abc import Iterator

import pytest

from tests.faults.cases import Case, inject
from tests.faults.disk_cases import disk_cases, may_mount, stage_on_small_disks
from tests.faults.stage import Stage

pytestmark = [pytest.mark.triton, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    if not may_mount():
        pytest.skip("only root can mount the small disks (a tmpfs each) that this test fills")
    with stage_on_small_disks(tmp_path_factory.mktemp("stage")) as running:
        yield running


@pytest.mark.parametrize("case", disk_cases(), ids=lambda case: case.name)
def test_full_disk_breaks_no_invariant(stage: Stage, case: Case) -> None:
    row = inject(stage, case, case.quick)
    assert row.violations == []
    assert len(row.heal_seconds) == case.quick
