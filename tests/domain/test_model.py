"""A model's head: which version a name means."""

from datetime import UTC, datetime

from controlplane.domain.manifest import Format
from controlplane.domain.model import ModelHead, VersionEntry


def entry(number: int, format: Format = Format.ONNX, *, servable: bool = True, deleted: bool = False) -> VersionEntry:  # noqa: A002
    return VersionEntry(
        number=number,
        manifest="0" * 64,
        format=format,
        size_bytes=1,
        servable=servable,
        published_at=datetime.now(UTC),
        published_by="ada",
        deleted=deleted,
    )


def test_newest_servable_version_skips_unservable_versions() -> None:
    versions = (
        entry(1),
        entry(2),
        entry(3, deleted=True),
        entry(4, Format.TORCHSCRIPT, servable=False),
        entry(5, Format.SKLEARN),
    )
    found = ModelHead(name="m", versions=versions).newest_servable
    assert found is not None
    assert found.number == 2
    assert ModelHead(name="m", versions=versions[3:]).newest_servable is None
