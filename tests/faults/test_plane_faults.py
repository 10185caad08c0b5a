"""Two control planes on one bucket beside a Triton that outlives them; `make faults` kills them hundreds of times."""

from collections.abc import Iterator

import pytest

from tests.faults.cases import Case, inject
from tests.faults.plane_cases import plane_cases
from tests.faults.stage import Stage, stage_beside_triton
from tests.support.s3server import S3Server
from tests.support.triton import running_triton

pytestmark = [pytest.mark.triton, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def stage(moto: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("stage")
    with (
        running_triton(folder / "triton") as triton,
        stage_beside_triton(moto, triton, folder, replicas=2) as running,
    ):
        yield running


@pytest.mark.parametrize("case", plane_cases(), ids=lambda case: case.name)
def test_control_plane_fault_loses_nothing(stage: Stage, case: Case) -> None:
    row = inject(stage, case, case.quick)
    assert row.violations == []
    assert len(row.heal_seconds) == case.quick
