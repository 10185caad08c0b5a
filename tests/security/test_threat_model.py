"""The threat model names tests; each of them is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_tests_named_in_the_threat_model_exist() -> None:
    written = (ROOT / "docs" / "evidence" / "threat-model.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", written))
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    missing = {name for name in named if f"def {name}(" not in sources}
    assert named
    assert not missing
    assert all((ROOT / folder).is_dir() for folder in re.findall(r"`(tests/\w+)`", written))
