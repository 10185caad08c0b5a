"""Runs `tritonctl fsck` over the API or on the store itself, and prints the report."""

from typing import Any

from controlplane.cli.output import Output, size
from controlplane.cli.session import Session
from controlplane.domain.units import count_text
from controlplane.errors import InvalidInputError


def check(
    session: Session, request: dict[str, Any], *, offline: bool, store: str | None, endpoint: str | None
) -> dict[str, Any]:
    """Return the report of a check.

    Raises:
        InvalidInputError: A store is given together with the API, which has its own.
    """
    if offline:
        return _offline(session, request, store, endpoint)
    if store or endpoint:
        raise InvalidInputError("--store and --endpoint need --offline; the control plane uses its own store")
    from controlplane.cli.progress import follow
    from controlplane.client.models import Operation

    with session.client() as client:
        operation = client.read(Operation, client.post("/v1/fsck", request))
        return dict(follow(client, operation, session.out()).result or {})


def _offline(session: Session, request: dict[str, Any], store: str | None, endpoint: str | None) -> dict[str, Any]:
    from controlplane.client.http import whoami
    from controlplane.registry.cache import BlobCache
    from controlplane.registry.head_memory import open_memory
    from controlplane.registry.registry import Registry
    from controlplane.services.checking import check_store
    from controlplane.storage.clock import StoreClock
    from controlplane.storage.factory import open_store
    from controlplane.storage.probe import check_store as probe

    settings = session.settings(store=store, endpoint=endpoint)
    opened = open_store(settings.store, settings.data_dir)
    try:
        probe(opened)
        registry = Registry(
            opened,
            BlobCache(settings.cache.path or settings.data_dir / "cache", settings.cache.max_bytes),
            head_max_age_seconds=0.0,
            gc=settings.gc,
            memory=open_memory(opened, settings.data_dir / "heads"),
            clock=StoreClock(opened, max_skew_seconds=settings.store.max_clock_skew_seconds),
        )
        out = session.out()
        return check_store(registry, **request, actor=f"offline/{session.actor or whoami()}", stage=out.note)
    finally:
        opened.close()


def show(out: Output, report: dict[str, Any]) -> None:
    """Print a report for people."""
    for one in report["decided"]:
        out.line(f"resolved: {one}", style="green")
    findings = report["findings"]
    if findings:
        out.table(
            ("", "reason", "subject", "message"),
            (
                ("repaired" if one["repaired"] else one["severity"], one["reason"], one["subject"], one["message"])
                for one in findings
            ),
        )
        advised = [one for one in findings if one["advice"]]
        if advised:
            out.line()
        for one in advised:
            out.line(f"{one['subject']}: {one['advice']}", style="red" if one["severity"] == "error" else "yellow")
        out.line()
    read = (
        f"; read {size(report['bytes_read'])}"
        if report["deep"]
        else "; the content of the blobs was not read (use --deep)"
    )
    out.line(
        f"{count_text(report['chains'], 'chain')} with {count_text(report['revisions'], 'revision')}, "
        f"{count_text(report['blobs'], 'blob')} "
        f"({report['blobs_unreferenced']} unreferenced){read}"
    )
    if not findings:
        out.line("no damage found", style="green")
