"""Printing: tables for people, documents for programs; results go to stdout, everything else to stderr."""

import sys
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any, ClassVar

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.control import strip_control_codes
from rich.table import Table
from rich.text import Text

from controlplane.cli.documents import DOCUMENTS, OutputFormat, text_of

_UNBOUNDED = 10_000
_DRAWN_ROWS = 100
"""A larger table that is not written to a terminal is not drawn with rich, which takes a millisecond for each row."""
_STYLES = {
    "Ready": "green",
    "READY": "green",
    "ok": "green",
    "succeeded": "green",
    "Degraded": "yellow",
    "warn": "yellow",
    "Warning": "yellow",
    "Failed": "red",
    "failed": "red",
    "fail": "red",
    "Unreachable": "red",
    "Stopped": "red",
    "Unloaded": "dim",
}


class Output:
    """The output of one command.

    Args:
        form: The format that ``-o`` selects.
        stream: Whether more documents follow, as with ``--watch``.

    Attributes:
        json_wanted: Whether the format is one for programs: then stdout has documents and nothing else.
        wide: Whether tables show all of their columns.
        printed: Whether this process has printed its document.
    """

    printed: ClassVar[bool] = False

    def __init__(self, form: OutputFormat = "table", *, stream: bool = False) -> None:
        self._form = form
        self._stream = stream
        self.json_wanted = form in DOCUMENTS
        self.wide = form == "wide"
        self._console = _console(sys.stdout)
        self.errors = _console(sys.stderr)

    def result(self, document: object, *, names: Iterable[str] | None = None) -> None:
        """Print the document if the format is one for programs.

        Args:
            document: Plain values or records.
            names: What ``-o name`` prints; default: the names found in the document.
        """
        if not self.json_wanted:
            return
        # Not through rich, which wraps and colours the text: a program reads this.
        shown = list(names) if names is not None and self._form == "name" else document
        text = text_of(shown, self._form, stream=self._stream)
        sys.stdout.write(text)
        sys.stdout.flush()
        if not text and document not in ([], ()):
            sys.stderr.write("note: this output has no names; use -o json or -o yaml\n")
        Output.printed = True

    def event(self, document: object) -> None:
        """Print one document of a stream: JSON on one line, or a document of a YAML stream."""
        sys.stdout.write(text_of(document, self._form, stream=True))
        sys.stdout.flush()

    def line(self, text: str | Text = "", *, style: str = "") -> None:
        """Print a line for people; nothing in a format for programs."""
        if not self.json_wanted:
            self._console.print(
                text if isinstance(text, Text) else Text(text, style=style), soft_wrap=True, highlight=False
            )

    def note(self, text: str, *, style: str = "dim") -> None:
        """Print a note on stderr, so that it is never taken for the result."""
        if not self.json_wanted:
            self.errors.print(Text(text, style=style), soft_wrap=True, highlight=False)

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        *,
        empty: str = "",
        wide: Collection[str] = (),
    ) -> None:
        """Print rows under headings, or ``empty`` if there are none.

        Args:
            columns: The headings.
            rows: One value for each column.
            empty: A note for an empty table.
            wide: The columns that only ``-o wide`` shows.
        """
        if self.json_wanted:
            return
        listed: list[Sequence[object]] = list(rows)
        if wide and not self.wide:
            kept = [place for place, column in enumerate(columns) if column not in wide]
            columns = [columns[place] for place in kept]
            listed = [[row[place] for place in kept] for row in listed]
        if not listed:
            self.note(empty or "nothing to show")
            return
        if not self._console.is_terminal and len(listed) > _DRAWN_ROWS:
            self._console.file.write(_aligned([[column.upper() for column in columns], *listed]))
            return
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for number, column in enumerate(columns):
            table.add_column(column.upper(), overflow="fold", no_wrap=number == 0)
        for row in listed:
            table.add_row(*map(_cell, row))
        self._print(table)

    def facts(self, pairs: Iterable[tuple[str, object]]) -> None:
        """Print names and values, one pair a line; pairs without a value are left out."""
        if self.json_wanted:
            return
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in pairs:
            if value not in (None, "", ()):
                table.add_row(name, _cell(value))
        self._print(table)

    def show(self, picture: RenderableType) -> None:
        """Print something drawn with rich; nothing in a format for programs."""
        if not self.json_wanted:
            self._print(picture)

    def _print(self, table: RenderableType) -> None:
        with self._console.capture() as capture:
            self._console.print(table)
        # Cells are padded to their column; remove the spaces at the end of each line.
        self._console.file.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def error_line(message: str) -> None:
    """Print an error as one block on stderr."""
    console = _console(sys.stderr)
    console.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True, highlight=False)


def ago(moment: datetime | None) -> str:
    """Return how long ago a moment was, in words."""
    if moment is None:
        return "-"
    seconds = (datetime.now(UTC) - moment).total_seconds()
    if abs(seconds) < 1:
        return "now"
    text = span(round(abs(seconds))) if abs(seconds) >= 10 else f"{abs(seconds):.0f} s"
    return f"{text} ago" if seconds > 0 else f"in {text}"


def span(seconds: float) -> str:
    """Return a duration as text with a suitable precision."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count: int) -> str:
    """Return a number of bytes in binary units."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def pairs(mapping: dict[str, Any]) -> str:
    """Return a small mapping on one line."""
    shown = {
        key: pairs(value) if isinstance(value, dict) else value
        for key, value in sorted(mapping.items())
        if value not in ({}, [], (), None, "")
    }
    return ", ".join(f"{key}={value}" for key, value in shown.items()) or "-"


def _console(stream: Any) -> Console:
    # A pipe has no width, and its reader needs whole lines, not lines cut at 80 columns.
    interactive = stream.isatty()
    return Console(file=stream, width=None if interactive else _UNBOUNDED, highlight=False, emoji=False)


def _aligned(rows: Sequence[Sequence[object]]) -> str:
    """Return rows as rich would show them in a table without styles."""
    cells = [[_lines(value) for value in row] for row in rows]
    widths = [max(cell_len(line) for cell in column for line in cell) for column in zip(*cells, strict=True)]
    shown = []
    for row in cells:
        lines = zip_longest(*row, fillvalue="")
        for line in lines:
            padded = (text + " " * (width - cell_len(text)) for text, width in zip(line, widths, strict=True))
            shown.append("  ".join(padded).rstrip() + "\n")
    return "".join(shown)


def _cell(value: object) -> Text:
    if isinstance(value, Text):
        return value
    text = _text(value)
    return Text(text, style=_STYLES.get(text, ""))


def _text(value: object) -> str:
    return "-" if value is None or value == "" else str(value)


def _lines(value: object) -> list[str]:
    """Return the lines of a cell without control characters, as rich shows them."""
    text = strip_control_codes(value.plain if isinstance(value, Text) else _text(value))
    return [line.expandtabs() for line in text.split("\n")]
