"""Query parameters: unknown ones are refused, and lists are filtered by the known ones.

FastAPI ignores a parameter that a route does not have, so a misspelled filter would select everything.
"""

import difflib
import fnmatch
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Query, Request

from controlplane.errors import InvalidInputError

NameFilter = Annotated[
    str | None,
    Query(max_length=256, description="Only models with this name; `*` and `?` stand for any characters."),
]

LabelFilter = Annotated[
    list[str] | None,
    Query(
        max_length=16,
        description="Only models with this label, as `key=value`; of several labels, models must have all.",
    ),
]


def labels_of(given: list[str] | None) -> tuple[tuple[str, str], ...]:
    """Return the labels of a filter as keys and values."""
    return tuple((key, value) for key, _, value in (one.partition("=") for one in given or ()))


def name_matches(pattern: str | None, name: str) -> bool:
    """Return whether a name matches a filter; None matches every name."""
    return pattern is None or fnmatch.fnmatchcase(name, pattern)


async def refuse_unknown(request: Request) -> None:
    """Refuse query parameters that the route does not have.

    Raises:
        InvalidInputError: A parameter is unknown; the message names it and the most similar one.
    """
    given = list(request.query_params)
    if not given:
        return
    known = sorted(set(_names(getattr(request.scope.get("route"), "dependant", None))))
    for name in given:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        have = f"the parameters are {', '.join(known)}" if known else "this route has none"
        raise InvalidInputError(f"unknown query parameter {name[:60]!r}{hint} ({have})", parameter=name[:60])


def _names(dependant: Any) -> Iterator[str]:
    """Yield the query parameters of a route and of its dependencies."""
    if dependant is None:
        return
    yield from (field.alias for field in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _names(inner)
