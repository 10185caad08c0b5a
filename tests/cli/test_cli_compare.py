"""`label` and `compare`."""

from pathlib import Path

import pytest

from tests.cli.conftest import Cli

pytestmark = pytest.mark.triton


def test_labels_are_set_kept_and_removed(cli: Cli, doubling: Path) -> None:
    cli.ok("push", "labelled", doubling)
    assert cli.ok("label", "labelled", "team=vision", "stage=test", "-o", "json").json["labels"] == {
        "team": "vision",
        "stage": "test",
    }
    cli.ok("label", "labelled", "stage-", "owner=ada")
    assert cli.ok("label", "labelled", "-o", "json").json["labels"] == {"team": "vision", "owner": "ada"}
    wrong = cli("label", "labelled", "team")
    assert (wrong.code, "key=value" in wrong.err) == (6, True)


def test_versions_are_compared(cli: Cli, doubling: Path, tripling: Path) -> None:
    cli.ok("push", "compared", doubling, "--metric", "top1=0.5")
    cli.ok("push", "compared", tripling, "--metric", "top1=0.75")
    document = cli.ok("compare", "compared:1", "compared", "-o", "json").json
    found = {one["what"]: (one["first"], one["second"]) for one in document["differences"]}
    assert document["versions"] == ["compared:1", "compared:2"]
    assert found["metric top1"] == ("0.5", "0.75")
    assert "format" not in found
    assert "0.75" in cli.ok("compare", "compared:1", "compared:2").out
