"""What the client returns: versions, deployments, comparisons and metrics, with a picture of each for notebooks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlplane.cli.output import size, span
from controlplane.cli.views.version import comparison
from controlplane.client import models as documents
from controlplane.domain.arrays import Array
from controlplane.domain.manifest import Manifest, ParityReport
from controlplane.domain.metrics import ObjectiveState, Point, TrafficStats
from controlplane.domain.signature import Signature
from tritonctl import html

if TYPE_CHECKING:
    from tritonctl.client import Client


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable version of a model.

    Attributes:
        model: The model's name.
        number: The version, from 1; Triton's folder has the same number.
        manifest: Everything that was fixed when it was published: files, signature, parity, metrics, labels.
        aliases: The aliases that point to it.
        published_at: When it was published (UTC).
        warnings: What the publication or the conversion reported.
    """

    model: str
    number: int
    manifest: Manifest
    aliases: tuple[str, ...]
    published_at: datetime
    warnings: tuple[str, ...] = ()
    _client: "Client | None" = field(default=None, repr=False, compare=False)

    @property
    def reference(self) -> str:
        """The version as ``name:7``."""
        return f"{self.model}:{self.number}"

    @property
    def signature(self) -> Signature | None:
        """Names, types and shapes of the inputs and outputs; None if the format does not declare them."""
        return self.manifest.signature

    @property
    def parity(self) -> ParityReport | None:
        """How its answers compare with those of the model that it was converted from; None without a conversion."""
        return self.manifest.parity

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics that its publisher gave."""
        return self.manifest.metrics

    def deploy(self, **options: Any) -> "Deployment":
        """Deploy it; the options are those of `Client.deploy`."""
        if self._client is None:
            raise RuntimeError("this version has no client; use client.deploy(version)")
        return self._client.deploy(self, **options)

    def __str__(self) -> str:
        return self.reference

    def _repr_html_(self) -> str:
        manifest, signature = self.manifest, self.signature
        servable = html.good(manifest.servable, "yes" if manifest.servable else manifest.unservable or "no")
        parts = [
            f"<b>{escape(self.reference)}</b>",
            html.facts(
                (
                    ("format", manifest.format.value),
                    ("servable", servable),
                    ("inputs", _tensors(signature, "inputs")),
                    ("outputs", _tensors(signature, "outputs")),
                    ("size", size(manifest.size_bytes)),
                    ("golden samples", manifest.golden.count if manifest.golden else "none"),
                    ("converted from", manifest.lineage.source if manifest.lineage else None),
                    ("aliases", ", ".join(self.aliases)),
                    ("metrics", _pairs(manifest.metrics)),
                    ("labels", _pairs(manifest.labels)),
                    ("notes", "\n".join(self.warnings)),
                )
            ),
        ]
        if self.parity is not None:
            parts += [f"parity with the original on {self.parity.samples} samples", _parity(self.parity)]
        return "".join(parts)


@dataclass(slots=True)
class Deployment:
    """The deployment of a model, as it was when it was read; `refresh` reads it again.

    Attributes:
        document: The API's document.
    """

    document: documents.Deployment
    _client: "Client" = field(repr=False)

    @property
    def model(self) -> str:
        """The model's name."""
        return self.document.model

    @property
    def version(self) -> int:
        """The desired version."""
        return self.document.spec.version

    @property
    def phase(self) -> str:
        """The phase: Pending, Loading, Ready, Failed and so on."""
        return self.document.status.phase.value if self.document.status else "Pending"

    @property
    def active_version(self) -> int | None:
        """The version that answers; None if none does."""
        servers = self.document.status.servers if self.document.status else ()
        return next((one.serving_version for one in servers if one.serving_version is not None), None)

    @property
    def message(self) -> str:
        """The state as one sentence."""
        return self.document.status.message if self.document.status else ""

    def wait(self, timeout: float | None = None) -> "Deployment":
        """Wait until the change is complete; see `Client.wait`."""
        self.document = self._client.wait(self, timeout).document
        return self

    def refresh(self) -> "Deployment":
        """Read the present state."""
        self.document = self._client.deployment(self.model).document
        return self

    def __repr__(self) -> str:
        return f"<Deployment {self.model}:{self.version} {self.phase}>"

    def _repr_html_(self) -> str:
        settings = self.document.spec.settings
        return f"<b>{escape(self.model)}</b>" + html.facts(
            (
                ("phase", html.good(self.phase == "Ready", self.phase)),
                ("desired version", self.version),
                ("active version", self.active_version),
                ("mode", settings.mode),
                ("memory", size(held) if (held := sum(one.held_bytes for one in self.document.memory)) else None),
                ("revision", self.document.revision),
                ("by", self.document.actor),
                ("reason", self.document.reason),
                ("message", self.message),
            )
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions side by side.

    Attributes:
        a: The first version.
        b: The second version.
        outputs: The answers of both to the same inputs, by output; empty if no inputs were given.
    """

    a: Version
    b: Version
    outputs: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)

    @property
    def same_signature(self) -> bool:
        """Whether a client of one works with the other."""
        return self.a.signature == self.b.signature

    @property
    def largest_difference(self) -> Mapping[str, float | None]:
        """The largest absolute difference by output; None for strings, and for shapes that differ."""
        return {name: _difference(*pair) for name, pair in self.outputs.items()}

    def rows(self) -> list[tuple[str, str, str]]:
        """Return what is compared: a name, and the value of each version as text."""
        return comparison(self.a.manifest, self.b.manifest)

    def _repr_html_(self) -> str:
        rows = [(name, *(html.Mark(value, bold=one != two) for value in (one, two))) for name, one, two in self.rows()]
        text = html.table(("", self.a.reference, self.b.reference), rows)
        if self.outputs:
            shown = ((name, "-" if d is None else f"{d:.3g}") for name, d in self.largest_difference.items())
            text += html.table(("output", "largest difference"), shown)
        return text


class Metrics(documents.Record):
    """The metrics of a deployment in a window that ends now; times in seconds."""

    model: str
    at: datetime
    window_seconds: float
    total: TrafficStats
    versions: tuple[TrafficStats, ...] = ()
    points: tuple[Point, ...] = ()
    objectives: tuple[ObjectiveState, ...] = ()

    def plot(self) -> "Plot":
        """Return charts of rate, latency and failures; a notebook shows them."""

        def milliseconds(seconds: float | None) -> float | None:
            return None if seconds is None else 1000 * seconds

        points, window = self.points, self.window_seconds
        latency = [
            ("mean", [milliseconds(one.request_seconds) for one in points]),
            ("p99", [milliseconds(one.p99_seconds) for one in points]),
        ]
        rates: list[tuple[str, list[float | None]]] = [("requests", [one.request_rate for one in points])]
        failures: list[tuple[str, list[float | None]]] = [("failures", [one.failure_rate for one in points])]
        return Plot(
            html.charts(
                [
                    html.chart(f"{self.model}: requests", rates, "/s", window),
                    html.chart("latency", latency, "ms", window),
                    html.chart("failures", failures, "/s", window),
                ]
            )
        )

    def _repr_html_(self) -> str:
        total = self.total
        columns = ("version", "requests", "per second", "failures", "mean", "p50", "p99", "queue", "batch")
        rows = [
            (
                one.version if one.version is not None else "all",
                f"{one.requests:g}",
                f"{one.request_rate:.3g}",
                f"{100 * (one.failure_share or 0):.3g} %",
                *map(_time, (one.request_seconds, one.latency.p50_seconds, one.latency.p99_seconds, one.queue_seconds)),
                "-" if one.batch_size is None else f"{one.batch_size:.3g}",
            )
            for one in (total, *self.versions)
        ]
        return f"<b>{escape(self.model)}</b>, the last {span(self.window_seconds)}" + html.table(columns, rows)


@dataclass(frozen=True, slots=True)
class Plot:
    """Charts as an SVG document.

    Attributes:
        svg: The document.
    """

    svg: str = field(repr=False)

    def save(self, path: str | Path) -> None:
        """Write the document to a file."""
        Path(path).write_text(self.svg, "utf-8")

    def _repr_svg_(self) -> str:
        return self.svg


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else span(seconds)


def _pairs(mapping: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in mapping.items())


def _tensors(signature: Signature | None, side: str) -> str:
    return "unknown" if signature is None else "\n".join(str(spec) for spec in getattr(signature, side))


def _parity(parity: ParityReport) -> str:
    return html.table(
        ("output", "max abs error", "max rel error", "agrees"),
        (
            (
                one.output,
                f"{one.max_absolute_error:.3g}",
                f"{one.max_relative_error:.3g}",
                html.good(one.agrees, "yes" if one.agrees else one.reason or "no"),
            )
            for one in parity.outputs
        ),
    )


def _difference(first: Array, second: Array) -> float | None:
    if first.shape != second.shape or first.dtype.kind not in "fiub":
        return None
    return float(abs(first.astype(float) - second.astype(float)).max(initial=0.0))
