"""HTML and SVG for notebooks, without a dependency and without styles of the page."""

from collections.abc import Iterable, Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _TOP = 640, 90, 70, 24
_COLOURS = ("#4e79a7", "#e15759", "#59a14f", "#f28e2b")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table; a `Mark` keeps its colour."""
    head = "".join(f"<th style='text-align:left'>{escape(one)}</th>" for one in columns)
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{_cell(c)}</td>" for c in row) + "</tr>" for row in rows
    )
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if columns else ''}<tbody>{body}</tbody></table>"


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Return names and values as a table; pairs without a value are left out."""
    return table((), ((Mark(name, bold=True), value) for name, value in pairs if value not in (None, "", ())))


class Mark:
    """A text with a colour or in bold."""

    def __init__(self, text: object, *, colour: str = "", bold: bool = False) -> None:
        self.text = str(text)
        self.style = (f"color:{colour};" if colour else "") + ("font-weight:bold" if bold else "")


def good(fine: bool, text: object) -> Mark:
    """Return a text in green or red."""
    return Mark(text, colour="#2e7d32" if fine else "#c62828")


def _cell(value: object) -> str:
    if isinstance(value, Mark):
        return f"<span style='{value.style}'>{escape(value.text)}</span>"
    return escape("-" if value is None or value == "" else str(value)).replace("\n", "<br>")


def chart(title: str, series: Sequence[tuple[str, Sequence[float | None]]], unit: str, seconds: float) -> str:
    """Return one chart as a group of an SVG document.

    Args:
        title: The heading.
        series: Name and values of each line, the oldest value first; None is a gap.
        unit: The unit of the values.
        seconds: The length of the time axis, which ends now.
    """
    top = max((value for _, values in series for value in values if value is not None), default=0.0) or 1.0
    right, bottom = _WIDTH - 10, _TOP + _HEIGHT
    legend = "".join(
        f"<tspan fill='{colour}' dx='12'>{escape(name)}</tspan>"
        for (name, _), colour in zip(series, _COLOURS, strict=False)
    )
    parts = [
        f"<text x='{_LEFT}' y='14' font-weight='bold'>{escape(title)}{legend}</text>",
        f"<path d='M{_LEFT} {_TOP}V{bottom}H{right}' fill='none' stroke='#999'/>",
        f"<text x='{_LEFT - 6}' y='{_TOP + 8}' text-anchor='end'>{top:.3g} {escape(unit)}</text>",
        f"<text x='{_LEFT - 6}' y='{bottom}' text-anchor='end'>0</text>",
        f"<text x='{_LEFT}' y='{bottom + 14}'>-{seconds:g} s</text>",
        f"<text x='{right}' y='{bottom + 14}' text-anchor='end'>now</text>",
    ]
    for (_, values), colour in zip(series, _COLOURS, strict=False):
        step = (right - _LEFT) / max(len(values) - 1, 1)
        path, pen = [], "M"
        for place, value in enumerate(values):
            if value is None:
                pen = "M"
                continue
            path.append(f"{pen}{_LEFT + place * step:.1f} {bottom - value / top * _HEIGHT:.1f}")
            pen = "L"
        if path:
            dot = "h0.1" if len(path) == 1 else ""
            parts.append(
                f"<path d='{''.join(path)}{dot}' fill='none' stroke='{colour}' stroke-width='1.5' "
                "stroke-linecap='round'/>"
            )
    return "".join(parts)


def charts(groups: Sequence[str]) -> str:
    """Return charts below one another as an SVG document."""
    height = _TOP + _HEIGHT + 26
    inside = "".join(f"<g transform='translate(0 {place * height})'>{one}</g>" for place, one in enumerate(groups))
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{height * len(groups)}' "
        f"font-family='sans-serif' font-size='11' fill='currentColor'>{inside}</svg>"
    )
