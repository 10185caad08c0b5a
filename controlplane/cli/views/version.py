"""Output of a version in full."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from controlplane.cli.output import Output, ago, pairs, size, span
from controlplane.client.models import Deployment, VersionDetail, VersionFootprint
from controlplane.domain.conditions import ConditionStatus
from controlplane.domain.manifest import Manifest, Origin, ParityReport
from controlplane.domain.pipelines import Step, steps_of
from controlplane.domain.portability import Loads, TargetReport, groups
from controlplane.domain.recorded_samples import SampleRecord, SampleSource
from controlplane.domain.signature import Signature


def describe(out: Output, detail: VersionDetail) -> None:
    """Print a version with its files, signature, origin and parity."""
    entry, manifest = detail.entry, detail.manifest
    lineage = manifest.lineage
    out.facts(
        (
            ("version", Text(f"{detail.model}:{entry.number}", style="bold cyan")),
            ("format", manifest.format.value),
            ("servable", _servable(manifest)),
            ("published", f"{ago(entry.published_at)} by {entry.published_by}"),
            ("aliases", ", ".join(detail.aliases)),
            ("damage", "\n".join(_damage(detail)) or None),
            ("inputs", _tensors(manifest.signature, "inputs")),
            ("outputs", _tensors(manifest.signature, "outputs")),
            ("batched", {True: "yes", False: "no"}[manifest.signature.batched] if manifest.signature else None),
            ("golden samples", _golden(manifest, detail.recorded_samples)),
            *_origin(lineage.origin if lineage else None),
            ("converted from", lineage.source if lineage else None),
            ("converter", f"{lineage.converter} {lineage.converter_version}".strip() or None if lineage else None),
            ("parameters", pairs(lineage.parameters) if lineage and lineage.parameters else None),
            ("environment", pairs(lineage.environment) if lineage and lineage.environment else None),
            ("attributes", pairs(manifest.attributes) if manifest.attributes else None),
            ("metrics", pairs(manifest.metrics) if manifest.metrics else None),
            ("labels", pairs(manifest.labels) if manifest.labels else None),
        )
    )
    out.line()
    out.table(
        ("file", "size", "sha256"), ((file.path, size(file.size_bytes), file.sha256[:16]) for file in manifest.files)
    )
    if manifest.parity is not None:
        out.line()
        show_parity(out, manifest.parity)


def comparison(first: Manifest, second: Manifest) -> list[tuple[str, str, str]]:
    """Return what is compared of two versions: a name, and the value of each as text."""

    def facts(manifest: Manifest) -> dict[str, str]:
        return {
            "format": manifest.format.value,
            "size": size(manifest.size_bytes),
            "servable": _servable(manifest),
            "inputs": _tensors(manifest.signature, "inputs"),
            "outputs": _tensors(manifest.signature, "outputs"),
            "golden samples": str(manifest.golden.count if manifest.golden else 0),
            "files": "\n".join(f"{one.path} {one.sha256[:12]}" for one in manifest.files),
            **{f"metric {name}": f"{value:g}" for name, value in manifest.metrics.items()},
            **{f"label {name}": value for name, value in manifest.labels.items()},
            **{
                f"parity {one.output}": f"{one.max_absolute_error:.3g}"
                for one in (manifest.parity.outputs if manifest.parity else ())
            },
        }

    one, two = facts(first), facts(second)
    return [(name, one.get(name, "-"), two.get(name, "-")) for name in {**one, **two}]


def _origin(origin: Origin | None) -> tuple[tuple[str, str | None], ...]:
    if origin is None:
        return ()
    at = f"{origin.uri} at {origin.server}" if origin.server else origin.uri
    return (
        ("origin", at),
        ("run", origin.run),
        ("revision", origin.revision),
        ("origin's tags", pairs(origin.tags) if origin.tags else None),
    )


def _golden(manifest: Manifest, recorded: Sequence[SampleRecord]) -> str:
    """Return where the golden samples come from, one line for each source."""
    lines = [str(manifest.golden.count)] if manifest.golden else []
    lines += [recorded_line(record) for record in recorded]
    return "\n".join(lines) or "none: a deployment proves only that it answers"


def recorded_line(record: SampleRecord) -> str:
    """Return a record of samples as one line."""
    how = {
        SampleSource.FIRST_DEPLOY: "recorded at first deploy",
        SampleSource.GIVEN: f"recorded from inputs that {record.actor} gave",
        SampleSource.TRAFFIC: f"recorded from traffic by {record.actor}",
    }[record.source]
    triton = f", Triton {record.triton_version}" if record.triton_version else ""
    return f"{record.count} {how} (on {record.server}{triton}, {ago(record.at)})"


def show_graph(out: Output, detail: VersionDetail, deployment: Deployment | None) -> None:
    """Draw a pipeline: its members with their pinned versions, and the tensors that its steps pass on."""
    manifest = detail.manifest
    if not manifest.members:
        return
    pins: Mapping[str, int] = {}
    if deployment is not None and deployment.spec.version == detail.entry.number:
        pins = deployment.spec.settings.members
    names = {member: f"{member}:{pins[member]}" if member in pins else member for member in manifest.members}
    steps = steps_of(manifest.config)
    kind = "ensemble" if steps else "Python model that calls its members"
    where = "members as its deployment pins them" if pins else "not deployed: a deploy pins the members' versions"
    out.line()
    out.line(f"{detail.model}:{detail.entry.number}  {kind}  ({where})")
    lines = [_edge(step, names[step.model]) for step in steps] or list(names.values())
    for position, line in enumerate(lines, 1):
        out.line(f"{'└' if position == len(lines) else '├'}─ {line}")


def _edge(step: Step, name: str) -> str:
    def side(tensors: Mapping[str, str]) -> str:
        return ", ".join(tensor if tensor == own else f"{tensor} (as {own})" for own, tensor in sorted(tensors.items()))

    return f"{side(step.inputs)} ─> [{name}] ─> {side(step.outputs)}"


def _damage(detail: VersionDetail) -> list[str]:
    """Return what is damaged in the version's files in the store."""
    return [one.message for one in detail.conditions if one.type == "Intact" and one.status is ConditionStatus.FALSE]


def show_footprints(out: Output, footprints: Sequence[VersionFootprint]) -> None:
    """Print the measured memory of a version, if there is any."""
    if not footprints:
        return
    out.line()
    out.line("measured memory, by device and settings:")
    out.table(
        (
            "backend",
            "on",
            "batch",
            "instances",
            "estimated",
            "load peak",
            "resident",
            "inference peak",
            "not released",
            "measured",
        ),
        (
            (
                one.backend,
                one.kind,
                one.max_batch_size,
                one.instances,
                size(one.estimate_bytes),
                size(one.load_peak_bytes),
                size(one.resident_bytes),
                size(one.inference_peak_bytes) if one.inference_peak_bytes else "-",
                "-" if one.left_bytes is None else size(one.left_bytes),
                ago(one.at),
            )
            for one in footprints
        ),
    )


def show_parity(out: Output, parity: ParityReport) -> None:
    """Print how a converted model compares with its original."""
    origin = f"generated with seed {parity.seed}" if parity.generated else "given"
    out.line(f"parity with the original on {parity.samples} samples ({origin}):")
    out.table(
        ("output", "max abs error", "max rel error", "allowed abs", "allowed rel", "agrees"),
        (
            (
                one.output,
                f"{one.max_absolute_error:.3g}",
                f"{one.max_relative_error:.3g}",
                f"{one.tolerance.absolute:g}",
                f"{one.tolerance.relative:g}",
                Text("yes", style="green") if one.agrees else Text("no", style="red"),
            )
            for one in parity.outputs
        ),
    )


def _servable(manifest: Manifest) -> str:
    if not manifest.format.runs:
        return "no, because Triton does not run this format; convert it"
    return "yes" if manifest.unservable is None else f"no, because {manifest.unservable}"


def _tensors(signature: Signature | None, side: str) -> str:
    if signature is None:
        return "unknown until it is converted"
    return "\n".join(str(spec) for spec in getattr(signature, side))


def show_portability(out: Output, reports: Sequence[TargetReport]) -> None:
    """Print on which targets a version loads; consecutive images with one verdict share a line."""
    if not reports:
        return
    styles = {Loads.YES: "green", Loads.NO: "red", Loads.UNKNOWN: "yellow"}
    out.line()
    out.table(
        ("target", "loads", "runs", "why"),
        (
            (title, Text(one.loads.value, style=styles[one.loads]), one.runs, "; ".join(one.reasons))
            for title, one in groups(reports)
        ),
    )


def show_result(out: Output, result: Mapping[str, Any]) -> None:
    """Print the result of a publication or a conversion."""
    if result.get("unchanged"):
        out.line(
            Text.assemble(
                "unchanged: equals ", (str(result["reference"]), "bold cyan"), " (--force publishes it again)"
            )
        )
    else:
        out.line(Text.assemble("published ", (str(result["reference"]), "bold cyan")))
    if result.get("unservable"):
        out.note(f"note: Triton cannot serve this version: {result['unservable']}", style="yellow")
    if result.get("missing"):
        out.note(f"note: no server can run this version: {result['missing']}", style="yellow")
    for warning in result.get("warnings") or ():
        out.note(f"note: {warning}", style="yellow")


def show_validation(out: Output, source: str, report: Mapping[str, Any]) -> None:
    """Print the results of the checks."""
    out.table(
        ("check", "result", "duration", "message"),
        (
            (check["name"], "ok" if check["ok"] else "fail", span(check["seconds"]), check["message"])
            for check in report["checks"]
        ),
    )
    signature = Signature.model_validate(report["signature"]) if report.get("signature") else None
    out.line()
    out.facts(
        (
            ("source", source),
            ("format", report.get("format")),
            ("inputs", _tensors(signature, "inputs") if signature else None),
            ("outputs", _tensors(signature, "outputs") if signature else None),
            ("attributes", pairs(report["attributes"]) if report.get("attributes") else None),
        )
    )
    show_portability(out, [TargetReport.model_validate(one) for one in report.get("portability") or ()])
    for hint in report.get("hints") or ():
        out.note(f"note: {hint}", style="yellow")
