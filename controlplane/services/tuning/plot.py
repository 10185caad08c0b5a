"""Draws the measurements of a tuning as an SVG: throughput against the p99 latency. Pure, no library."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from controlplane.domain.tuning import Objective, Point, Trial, TrialState, frontier, points

_WIDTH, _HEIGHT = 960, 520
_LEFT, _TOP, _RIGHT, _BOTTOM = 78, 64, 590, 450
"""The edges of the plotted area; the legend is right of it."""
_LEGEND = 618
_TEXT, _SOFT, _GRID = "#1f2328", "#59636e", "#e4e7eb"
_LINE, _BEST, _PRESENT, _OTHER, _LIMIT = "#0b62c4", "#1a7f37", "#bc4c00", "#8c959f", "#cf222e"
_LEGEND_ROWS = 10


def plot(title: str, trials: Sequence[Trial], objective: Objective, best: Point | None) -> str:
    """Return an SVG document.

    Args:
        title: The plot's title.
        trials: The measurements; only settings with correct outputs are drawn.
        objective: Its limits are drawn as lines.
        best: The chosen point, if any.
    """
    shown = points(trials)
    parts = [
        f'<text x="{_LEFT}" y="26" font-size="16" font-weight="600">{escape(title)}: throughput and latency</text>',
        f'<text x="{_LEFT}" y="46" fill="{_SOFT}">{escape(f"looked for: {objective}")}</text>',
    ]
    if shown:
        chart = _Chart(shown, objective)
        parts += [*chart.axes(), *chart.limits(), *chart.dots(best), *_legend(chart.edge, best)]
    else:
        parts.append(f'<text x="{_LEFT}" y="100">No setting could be measured.</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="system-ui, Helvetica, Arial, sans-serif" font-size="12" fill="{_TEXT}" '
        f'role="img">\n<title>{escape(title)}: throughput against p99 latency</title>\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


class _Chart:
    """The plotted area: throughput from left to right, p99 from bottom to top on a logarithmic axis."""

    def __init__(self, shown: Sequence[Point], objective: Objective) -> None:
        self._shown = shown
        self._objective = objective
        self.edge = frontier(shown)
        latencies = [point.measured.p99_seconds * 1000 for point in shown]
        # A limit far from the measurements would compress them into a corner, so it is left out.
        limit = objective.max_p99_seconds
        self._limit_ms = None if limit is None or limit * 1000 > 4 * max(latencies) else limit * 1000
        heights = [*latencies, *([] if self._limit_ms is None else [self._limit_ms])]
        self._low, self._high = min(heights) / 1.25, max(heights) * 1.25
        throughputs = [point.measured.throughput for point in shown]
        needed = objective.min_throughput
        self._needed = None if needed is None or needed > 4 * max(throughputs) else needed
        self._most = max([*throughputs, *([] if self._needed is None else [self._needed])]) * 1.08

    def x(self, throughput: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * throughput / self._most

    def y(self, milliseconds: float) -> float:
        share = math.log(max(milliseconds, 1e-6) / self._low) / math.log(self._high / self._low)
        return _BOTTOM - (_BOTTOM - _TOP) * share

    def axes(self) -> list[str]:
        parts = []
        for tick in _linear_ticks(self._most):
            x = self.x(tick)
            parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_BOTTOM}" stroke="{_GRID}"/>')
            parts.append(_text(x, _BOTTOM + 18, f"{tick:g}", anchor="middle"))
        for tick in _log_ticks(self._low, self._high):
            y = self.y(tick)
            parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_RIGHT}" y2="{y:.1f}" stroke="{_GRID}"/>')
            parts.append(_text(_LEFT - 8, y + 4, f"{tick:g}", anchor="end"))
        parts.append(f'<path d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}" fill="none" stroke="{_SOFT}"/>')
        parts.append(_text((_LEFT + _RIGHT) / 2, _BOTTOM + 42, "requests per second", anchor="middle"))
        middle = (_TOP + _BOTTOM) / 2
        parts.append(
            f'<text transform="translate(24 {middle:.0f}) rotate(-90)" text-anchor="middle">'
            "p99 latency in ms (logarithmic)</text>"
        )
        return parts

    def limits(self) -> list[str]:
        parts = []
        dashed = f'stroke="{_LIMIT}" stroke-dasharray="5 4"'
        if self._limit_ms is not None:
            y = self.y(self._limit_ms)
            parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_RIGHT}" y2="{y:.1f}" {dashed}/>')
            parts.append(_text(_RIGHT - 4, y - 5, f"p99 limit {self._limit_ms:g} ms", anchor="end", fill=_LIMIT))
        if self._needed is not None:
            x = self.x(self._needed)
            parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_BOTTOM}" {dashed}/>')
            parts.append(_text(x + 4, _TOP + 12, f"at least {self._needed:g}/s", fill=_LIMIT))
        return parts

    def dots(self, best: Point | None) -> list[str]:
        line = [f"{self.x(p.measured.throughput):.1f},{self.y(p.measured.p99_seconds * 1000):.1f}" for p in self.edge]
        parts = [
            self._dot(point, 4, _color(point, best, _OTHER), brief=_is_brief(point))
            for point in self._shown
            if point not in self.edge
        ]
        parts.append(f'<polyline points="{" ".join(line)}" fill="none" stroke="{_LINE}" stroke-width="1.5"/>')
        for number, point in enumerate(self.edge, 1):
            color, brief = _color(point, best, _LINE), _is_brief(point)
            parts.append(self._dot(point, 8.5, color, brief=brief))
            x, y = self.x(point.measured.throughput), self.y(point.measured.p99_seconds * 1000)
            parts.append(_text(x, y + 4, f"{number}", anchor="middle", fill=color if brief else "#ffffff"))
        if best is not None:
            parts.append(self._dot(best, 12, _BEST, ring=True))
        return parts

    def _dot(self, point: Point, radius: float, color: str, *, brief: bool = False, ring: bool = False) -> str:
        x, y = self.x(point.measured.throughput), self.y(point.measured.p99_seconds * 1000)
        paint = f'fill="{color}"'
        if brief or ring:
            paint = f'fill="{"none" if ring else "#ffffff"}" stroke="{color}" stroke-width="{2 if ring else 1.5}"'
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" {paint}><title>{escape(_words(point))}</title></circle>'


def _color(point: Point, best: Point | None, other: str) -> str:
    return _BEST if point == best else _PRESENT if point.trial.present else other


def _is_brief(point: Point) -> bool:
    """Return whether the setting dropped out, so that it was measured for a short time only."""
    return point.trial.state is not TrialState.MEASURED


def _legend(edge: Sequence[Point], best: Point | None) -> list[str]:
    keys = [
        (_LINE, "on the Pareto frontier"),
        (_OTHER, "other settings and loads"),
    ]
    keys.append((_PRESENT, "current settings of the deployment"))
    if best is not None:
        keys.append((_BEST, "best for the objective (ringed)"))
    keys.append(("", "hollow: measured only in a short round"))
    parts = []
    for row, (color, words) in enumerate(keys):
        y = _TOP + 6 + 20 * row
        paint = f'fill="{color}"' if color else f'fill="#ffffff" stroke="{_OTHER}" stroke-width="1.5"'
        parts.append(f'<circle cx="{_LEGEND + 6}" cy="{y}" r="5" {paint}/>')
        parts.append(_text(_LEGEND + 18, y + 4, words))
    top = _TOP + 6 + 20 * len(keys) + 14
    # On a long frontier only the fastest are labelled; the other dots show their numbers in a tooltip.
    named = list(enumerate(edge, 1))[-_LEGEND_ROWS:]
    for row, (number, point) in enumerate(named):
        y = top + 31 * row
        figures = (
            f"{point.measured.throughput:.0f}/s, p99 {point.measured.p99_seconds * 1000:.3g} ms, "
            f"{point.measured.clients} client{'s' * (point.measured.clients > 1)}"
        )
        parts.append(_text(_LEGEND, y, f"{number}", weight=600))
        parts.append(_text(_LEGEND + 18, y, str(point.trial.setting)))
        parts.append(_text(_LEGEND + 18, y + 14, figures, fill=_SOFT))
    return parts


def _words(point: Point) -> str:
    m = point.measured
    latency = f"p50 {m.p50_seconds * 1000:.2f} ms, p99 {m.p99_seconds * 1000:.2f} ms"
    return f"{point.trial.setting}; {m.clients} clients: {m.throughput:.0f} requests/s, {latency}"


def _text(
    x: float, y: float, words: str, *, anchor: str = "start", fill: str = _TEXT, weight: int | None = None
) -> str:
    bold = f' font-weight="{weight}"' if weight else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}"{bold}>{escape(words)}</text>'


def _linear_ticks(most: float) -> list[float]:
    step = _step(most / 5)
    return [step * number for number in range(int(most / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten, with enough digits between them for four ticks; in a narrow range, even steps."""
    for digits in ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)):
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [float(f"{digit * 10.0**exponent:.3g}") for exponent in exponents for digit in digits]
        if len(found := [tick for tick in ticks if low <= tick <= high]) >= 4:
            return found
    step = _step((high - low) / 4)
    return [float(f"{step * number:.6g}") for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _step(least: float) -> float:
    """Return the smallest of 1, 2, 5, 10, 20, … that is at least ``least``."""
    magnitude: float = 10.0 ** math.floor(math.log10(least))
    return next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= least * (1 - 1e-9))
