"""Readable validation errors for refused documents, instead of pydantic's. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

_SHOWN = 60
_SECRET_WORDS = ("key", "secret", "password", "token", "credential")
# By pydantic's error type; {limits} come from its context, and {got} is the given value.
_SENTENCES: Mapping[str, str] = {
    "missing": "is missing",
    "extra_forbidden": "is not a known field; remove it or check its spelling",
    "string_too_long": "has more than {max_length} characters",
    "string_too_short": "needs at least {min_length} characters",
    "string_pattern_mismatch": "does not have the required form {pattern}{got}",
    "too_short": "needs at least {min_length} elements and has {actual_length}",
    "too_long": "can have at most {max_length} elements and has {actual_length}",
    "greater_than": "must be greater than {gt}{got}",
    "greater_than_equal": "must be at least {ge}{got}",
    "less_than": "must be less than {lt}{got}",
    "less_than_equal": "must be at most {le}{got}",
    "multiple_of": "must be a multiple of {multiple_of}{got}",
    "finite_number": "must be a finite number{got}",
    "enum": "must be one of {expected}{got}",
    "literal_error": "must be one of {expected}{got}",
    "union_tag_invalid": "must have {discriminator} as one of {expected_tags}",
    "union_tag_not_found": "needs the field {discriminator}",
    "none_required": "must be null{got}",
    "json_invalid": "is not valid JSON: {error}",
    "frozen_instance": "cannot be changed",
    "url_parsing": "is not a URL: {error}{got}",
    "url_scheme": "must be a URL of {expected_schemes}{got}",
}
_KINDS: Mapping[str, str] = {
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "bool": "true or false",
    "string": "a string",
    "bytes": "a string",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "dict": "an object",
    "mapping": "an object",
    "model": "an object",
    "model_attributes": "an object",
    "dataclass": "an object",
    "datetime": "a time such as 2026-11-23T10:00:00Z",
    "date": "a date such as 2026-11-23",
    "time_delta": "a duration in seconds",
    "timezone": "a time with a time zone",
    "url": "a URL",
    "uuid": "a UUID",
    "path": "a path",
}


def invalid_field(error: ValidationError) -> str:
    """Return the error of the first invalid field of a refused document, and the number of further ones."""
    found = error.errors(include_url=False)
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    where = place(found[0]["loc"])
    return f"{where}: {sentence(found[0])}{more}" if where else f"{sentence(found[0])}{more}"


def place(location: Sequence[Any]) -> str:
    """Return a field's path in its document, as ``settings.max_batch_size``."""
    return ".".join(str(part) for part in location)


def sentence(item: Mapping[str, Any]) -> str:
    """Return the error of one field, from pydantic's description of it."""
    kind = str(item["type"])
    context = {name: str(value) for name, value in (item.get("ctx") or {}).items()}
    got = _got(item)
    if kind in {"value_error", "assertion_error"}:
        return context.get("error") or str(item["msg"]).partition(", ")[2]
    if kind in _SENTENCES:
        try:
            return _SENTENCES[kind].format(**context, got=got)
        except KeyError:
            pass  # another release of pydantic has a different context
    stem = next((stem for stem in sorted(_KINDS, key=len, reverse=True) if kind.startswith(f"{stem}_")), None)
    if stem is not None:
        return f"must be {_KINDS[stem]}{got}"
    return f"is not valid{got} ({kind.replace('_', ' ')})"


def _got(item: Mapping[str, Any]) -> str:
    value = item.get("input")
    secret = any(word in str(part).lower() for part in item["loc"] for word in _SECRET_WORDS)
    if "input" not in item or secret or isinstance(value, dict | list | tuple):
        return ""
    text = "null" if value is None else repr(value)
    return f", not {text if len(text) <= _SHOWN else text[: _SHOWN - 1] + '…'}"
