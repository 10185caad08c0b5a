"""Finds words that the project's documentation, code and tests avoid: ``python -m docs.check_language [PATH ...]``.

The words and what to write instead are in ``pyproject.toml``, ``[tool.language]``. Part of ``make lint``.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    "controlplane",
    "converters",
    "docs",
    "tests",
    "benchmarks",
    "deploy",
    "README.md",
    "CONTRIBUTING.md",
    "Makefile",
)
SUFFIXES = {".py", ".md", ".toml", ".yml", ".sh", ""}


def rejected_words() -> list[tuple[re.Pattern[str], str]]:
    """Return the rejected words as patterns (also inside of identifiers), each with what to write instead."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["language"]
    return [
        (re.compile(rf"(?<![a-z])(?:{word.replace(' ', '[ _]')})(?![a-z])", re.IGNORECASE), instead)
        for word, instead in settings["rejected"].items()
    ]


def files(paths: list[str]) -> Iterator[Path]:
    """Yield the text files below some paths, relative to the project."""
    for path in (ROOT / name for name in paths):
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (one for one in found if one.is_file() and one.suffix in SUFFIXES and "__pycache__" not in one.parts)


def main(paths: list[str]) -> int:
    """Print each use of a rejected word; return 1 if there is one."""
    words = rejected_words()
    bad = 0
    for file in files(paths or list(FOLDERS)):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            for pattern, instead in words:
                for found in pattern.finditer(line):
                    bad += 1
                    print(f"{file.relative_to(ROOT)}:{number}: {found.group()!r}: write {instead}")
    if bad:
        print(f"{bad} rejected words; the list is in pyproject.toml, [tool.language]", file=sys.stderr)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
