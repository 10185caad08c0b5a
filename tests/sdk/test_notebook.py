"""The notebook of the documentation, cell by cell, against a real control plane with a real Triton."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli

pytestmark = [pytest.mark.triton, pytest.mark.slow]
NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "first_model.ipynb"


def run_cell(source: str, names: dict[str, Any]) -> object:
    """Run a cell, and return the value of its last expression, as a notebook shows it."""
    tree = ast.parse(source)
    last = tree.body[-1] if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    body = tree.body[:-1] if last else tree.body
    exec(compile(ast.Module(body, []), str(NOTEBOOK), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names) if last else None


def picture(value: Any) -> str:
    for form in ("_repr_html_", "_repr_svg_"):
        if hasattr(value, form):
            return str(getattr(value, form)())
    return repr(value)


def test_notebook_runs_from_top_to_bottom(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("TRITONCTL_URL", "TRITONCTL_API_KEY", "TRITONCTL_API_KEY_FILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TRITONCTL_DATA_DIR", str(cli.data_dir))
    document = json.loads(NOTEBOOK.read_text())
    cells = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert not [cell for cell in cells if cell["outputs"] or cell["execution_count"]], "clear the notebook's outputs"
    names: dict[str, Any] = {}
    try:
        shown = "\n".join(picture(run_cell("".join(cell["source"]), names)) for cell in cells)
        active = names["client"].deployment("digits").active_version
    finally:
        names["client"].close()
    assert "digits:2" in shown
    assert "parity with the original" in shown
    assert "<svg" in shown
    assert "Ready" in shown
    assert "unknown: pixels" in capsys.readouterr().out
    assert active == names["version"].number
