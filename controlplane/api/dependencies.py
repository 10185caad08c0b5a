"""Dependencies of routes: the services, the caller, and the position of a page."""

import base64
import binascii
from typing import Annotated

from fastapi import Depends, Header, Path, Query, Request

from controlplane.api.auth import principal_of
from controlplane.domain.access import Principal, Scope
from controlplane.domain.texts import OneLine
from controlplane.errors import InvalidInputError
from controlplane.services.facade import Services

ANONYMOUS = "anonymous"
ACTOR_MAX = 128
PAGE_MAX = 1000


def services_of(request: Request) -> Services:
    """Return the services that the application was built with."""
    services: Services = request.app.state.services
    return services


async def _services(request: Request) -> Services:  # async: FastAPI runs plain functions in a thread
    return services_of(request)


async def _principal(request: Request) -> Principal | None:
    return principal_of(request.scope)


async def _actor(
    request: Request,
    x_actor: Annotated[
        str | None,
        Header(
            description="Who makes the request; every history records it, after the API key's name and a `/` "
            f"if a key is used. Printable ASCII, at most {ACTOR_MAX} characters.",
            examples=["ada@example.org"],
        ),
    ] = None,
) -> str:
    principal = principal_of(request.scope)
    if x_actor is None:
        return ANONYMOUS if principal is None else principal.actor(None)
    actor = x_actor.strip()
    if not actor or len(actor) > ACTOR_MAX or not (actor.isascii() and actor.isprintable()):
        raise InvalidInputError(
            f"the header X-Actor must be 1 to {ACTOR_MAX} printable ASCII characters, not {x_actor[:40]!r}"
        )
    return actor if principal is None else principal.actor(actor)


def encode_cursor(position: str) -> str:
    """Return an opaque cursor for the position at which the next page begins."""
    return base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> str:
    """Return the position that `encode_cursor` was given; empty if there is no cursor.

    Raises:
        InvalidInputError: The cursor is not valid.
    """
    if not cursor:
        return ""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        position = raw.decode()
    except (binascii.Error, UnicodeDecodeError, ValueError) as error:
        raise InvalidInputError(
            f"{cursor[:60]!r} is not a valid cursor; use next_cursor of the previous page"
        ) from error
    if not position.isprintable():
        raise InvalidInputError(f"{cursor[:60]!r} is not a valid cursor; use next_cursor of the previous page")
    return position


def decode_number_cursor(cursor: str | None) -> int | None:
    """Return the number in a cursor; None if there is no cursor.

    Raises:
        InvalidInputError: The cursor is not valid.
    """
    position = decode_cursor(cursor)
    if not position:
        return None
    if not (position.isascii() and position.isdigit() and len(position) <= 12):
        raise InvalidInputError(f"{str(cursor)[:60]!r} is not a valid cursor of this list")
    return int(position)


def may_see(asker: Principal | None, model: str) -> bool:
    """Return whether the caller may see a model."""
    return asker is None or asker.sees(model)


def require_code(asker: Principal | None, what: str) -> None:
    """Raise ForbiddenError unless the caller may add code."""
    if asker is not None:
        asker.require_scope(Scope.CODE, what)


App = Annotated[Services, Depends(_services)]
Actor = Annotated[str, Depends(_actor)]
Asker = Annotated[Principal | None, Depends(_principal)]
"""The caller by API key; None if API keys are not required, in which case nothing is hidden."""
Cursor = Annotated[
    str | None, Query(max_length=512, description="Start of the page: `next_cursor` of the previous page.")
]
Limit = Annotated[int, Query(ge=1, le=PAGE_MAX, description="Maximum number of items.")]
Wait = Annotated[
    float,
    Query(ge=0, le=600, allow_inf_nan=False, description="Maximum seconds to wait for the end before the response."),
]
ReasonQuery = Annotated[str, Query(max_length=1024, description="Why."), OneLine]
ModelName = Annotated[str, Path(description="The model's name.", examples=["resnet"])]
VersionSelector = Annotated[
    str, Path(description="A version number, `@alias`, or `latest`.", examples=["2", "@champion", "latest"])
]


async def _idempotency_key(
    _key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=255,
            description="Makes the request safe to repeat: the same key with the same request returns the "
            "first response again. Stored for two days.",
        ),
    ] = None,
) -> None:
    """Document and validate the header; `controlplane.api.middleware` implements it."""


IDEMPOTENT = Depends(_idempotency_key)
