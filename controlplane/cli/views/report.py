"""Output of the reports about a version."""

from collections.abc import Sequence

from controlplane.cli.output import Output, ago
from controlplane.domain.report import VersionReport


def show_reports(out: Output, name: str, reports: Sequence[VersionReport]) -> None:
    """Print the newest report in full, and one line for each earlier one."""
    if not reports:
        out.line(f"no report for {name} yet; reports are created on first deploy")
        return
    newest = reports[0]
    triton = f" (Triton {newest.triton_version})" if newest.triton_version else ""
    out.facts(
        (
            ("version", f"{newest.model}:{newest.version}"),
            ("verdict", newest.verdict.value),
            ("on", f"{newest.server}{triton}, {ago(newest.at)}"),
            ("configuration", newest.config_digest[:12]),
        )
    )
    out.line()
    out.table(
        ("check", "verdict", "message"), ((check.name, check.verdict.value, check.message) for check in newest.checks)
    )
    if len(reports) > 1:
        out.line()
        out.table(
            ("earlier", "when", "on", "verdict", "why"),
            ((one.number, ago(one.at), one.server, one.verdict.value, _why(one)) for one in reports[1:]),
        )


def _why(report: VersionReport) -> str:
    return "; ".join(check.message for check in report.checks if check.verdict is report.verdict) or ""
