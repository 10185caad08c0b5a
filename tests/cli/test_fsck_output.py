"""The report that `tritonctl fsck` prints for people."""

import pytest

from controlplane.cli.output import Output
from controlplane.cli.workflows.fsck import show
from controlplane.registry.findings import FsckReport


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 chains with 0 revisions, 0 blobs (0 unreferenced)"),
        (1, "1 chain with 1 revision, 1 blob (1 unreferenced)"),
        (2, "2 chains with 2 revisions, 2 blobs (2 unreferenced)"),
    ],
)
def test_fsck_summary_uses_singular_and_plural(count: int, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = FsckReport(
        store="memory://",
        deep=False,
        chains=count,
        revisions=count,
        blobs=count,
        blobs_unreferenced=count,
        bytes_read=0,
        findings=(),
    )
    show(Output(), report.model_dump(mode="json"))
    assert capsys.readouterr().out.splitlines()[0].startswith(f"{expected}; ")
