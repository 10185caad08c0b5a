"""The output for programs: a document as JSON or YAML, or the names of its items."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic_core import to_json

OutputFormat = Literal["table", "wide", "json", "yaml", "name"]
DOCUMENTS = frozenset({"json", "yaml", "name"})
"""The formats for programs. The others are for people."""
_NAMES = ("reference", "name", "model", "id", "server", "device")


def text_of(document: object, form: OutputFormat, *, stream: bool = False) -> str:
    """Return a document as text.

    Args:
        document: Plain values, records, or lists of them.
        form: ``json``, ``yaml`` or ``name``.
        stream: Whether more documents follow: JSON is then on one line, and YAML starts with ``---``.
    """
    if form == "name":
        return "".join(f"{name}\n" for name in names_of(document))
    text = to_json(
        document, indent=None if stream else 2, by_alias=False, inf_nan_mode="constants", fallback=str
    ).decode()
    if form == "json":
        return f"{text}\n"
    import yaml  # slow to import

    written: str = yaml.safe_dump(json.loads(text), sort_keys=False, allow_unicode=True)
    return f"---\n{written}" if stream else written


def names_of(document: object) -> list[str]:
    """Return the names of a document's items, as other commands accept them; items without one are left out."""
    plain = json.loads(to_json(document, by_alias=False, inf_nan_mode="constants", fallback=str))
    items = plain.get("items", plain) if isinstance(plain, dict) else plain
    return [name for item in (items if isinstance(items, list) else [items]) if (name := _name(item))]


def _name(item: Any) -> str:
    if not isinstance(item, Mapping):
        return str(item) if item is not None else ""
    number = item.get("entry", {}).get("number") if isinstance(item.get("entry"), Mapping) else item.get("version")
    if isinstance(item.get("model"), str) and isinstance(number, int) and "reference" not in item:
        return f"{item['model']}:{number}"
    return next((str(item[key]) for key in _NAMES if item.get(key) not in (None, "")), "")
