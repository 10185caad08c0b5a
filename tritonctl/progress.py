"""The progress of long calls, in a notebook, a terminal or a log."""

import importlib.util
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from controlplane.cli.output import Output


class Progress(Output):
    """Notes and bars of a client; results are returned, not printed.

    Args:
        shown: Whether anything is printed.
    """

    def __init__(self, *, shown: bool) -> None:
        super().__init__("table" if shown else "json")
        self.errors = _console()

    def result(self, document: object, **_: Any) -> None:
        """Do nothing: the caller gets the result."""

    def line(self, text: str | Text = "", *, style: str = "") -> None:
        """Print a line as a note."""
        self.note(str(text), style=style)


def _console() -> Console:
    console = Console(file=None if _in_notebook() else sys.stderr, highlight=False, emoji=False)
    if console.is_jupyter and importlib.util.find_spec("ipywidgets") is None:
        # Without widgets a bar cannot be redrawn in a cell: each stage is one line.
        console._force_terminal = False
    return console


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules
