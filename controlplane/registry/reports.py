"""Qualification reports, stored with the versions: one chain of create-only records for each version.

The chain is ``reports/<model>/<version>/``; the newest record is the first key, as in every chain.
"""

from collections.abc import Iterator

from pydantic import ValidationError

from controlplane.domain.report import VersionReport
from controlplane.errors import CommitConflictError
from controlplane.registry.chain import Chain, Revision
from controlplane.storage.base import ObjectStore

PREFIX = "reports/"
_TRIES = 3


class Reports:
    """Reads and commits reports. Blocks; safe to use from several threads."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def put(self, report: VersionReport, *, actor: str) -> None:
        """Commit a report, unless the newest report of the same server and configuration has the same content.

        Raises:
            StoreError: The store failed.
        """
        chain = self._chain(report.model, report.version)
        for _ in range(_TRIES):
            head = chain.head()
            before = _parse(head) if head else None
            if before is not None and _same(before, report):
                return
            try:
                chain.append(
                    report.model_dump(mode="json", exclude={"number", "at"}),
                    after=head,
                    actor=actor,
                    reason=f"{report.verdict.value} on {report.server}",
                )
            except CommitConflictError:
                continue  # another server's report was committed first
            return

    def history(self, model: str, version: int, *, limit: int, before: int | None = None) -> list[VersionReport]:
        """Return a version's reports, newest first; empty if there is none yet."""
        return list(self._read(model, version, limit, before))

    def _read(self, model: str, version: int, limit: int, before: int | None) -> Iterator[VersionReport]:
        for revision in self._chain(model, version).history(limit=limit, before=before):
            report = _parse(revision)
            if report is not None:
                yield report

    def _chain(self, model: str, version: int) -> Chain:
        return Chain(self._store, f"{PREFIX}{model}/{version}/")


def _same(one: VersionReport, other: VersionReport) -> bool:
    def key(report: VersionReport) -> tuple[object, ...]:
        verdicts = tuple((check.name, check.verdict) for check in report.checks)
        return report.server, report.triton_version, report.config_digest, verdicts

    return key(one) == key(other)


def _parse(revision: Revision) -> VersionReport | None:
    try:
        return VersionReport.model_validate({**revision.body, "number": revision.number, "at": revision.at})
    except ValidationError:
        return None  # written by a later version of this program
