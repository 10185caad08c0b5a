"""Memory and open files over a short run; `make faults` runs thousands of operations."""

from pathlib import Path

import pytest

from tests.faults.soak import Sample, grown, soak
from tests.support.s3server import S3Server

MIB = 1 << 20


@pytest.mark.long
def test_memory_and_open_files_stay_flat(moto: S3Server, tmp_path: Path) -> None:
    row = soak(moto, tmp_path, 300)
    assert row.violations == []


def test_memory_growth_is_found() -> None:
    flat = [Sample(number, 100 * MIB, 30, 20) for number in range(60)]
    assert grown(flat, 8 * MIB) == []
    leaking = [Sample(number, (100 + number) * MIB, 30, 20) for number in range(60)]
    (found,) = grown(leaking, 8 * MIB)
    assert "the memory grew by 15" in found
    open_files = [Sample(number, 100 * MIB, 30 + number, 20) for number in range(60)]
    (found,) = grown(open_files, 8 * MIB)
    assert "open files" in found
