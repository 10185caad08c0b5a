"""Authentication and authorization, before a byte of the body is read.

With keys: who the caller is, what the key permits, and how often it may call. Without keys (loopback, no key created
yet), a browser is the one client that others can control: a page from any site can send requests to this machine. So
requests that a browser marks as coming from another site are refused, and so are names in ``Host`` that are not this
machine's (DNS rebinding).
"""

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

from controlplane.api.permissions import PUBLIC_PATHS, RouteTable, is_page, permit
from controlplane.domain.access import Principal
from controlplane.errors import ForbiddenError, NotFoundError, UnauthenticatedError
from controlplane.services.facade import Services
from controlplane.services.keys import Authentication, is_loopback
from controlplane.services.sessions import Session, same_token

PRINCIPAL = "controlplane.principal"
"""The key in a request's scope that contains the caller; missing if API keys are not required."""

OTHER_SITES = frozenset({"cross-site", "same-site"})
"""Values of ``Sec-Fetch-Site`` with which browsers mark requests from pages of other sites."""
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class Authenticator:
    """Admits requests, or raises the reason for a refusal."""

    def __init__(self) -> None:
        self._table: RouteTable | None = None

    async def admit(self, scope: Scope) -> None:
        """Check one request and record its caller.

        Raises:
            UnauthenticatedError: It has no valid key.
            ForbiddenError: The key does not permit this, or the request comes from another site.
            NotFoundError: The route is unknown, and the key does not permit everything.
            RateLimitedError: The rate limit is exceeded.
        """
        services: Services = scope["app"].state.services
        headers = Headers(scope=scope)
        if not services.keys.enforced:
            _check_browser(scope, headers, services.keys.authentication)
            client = scope.get("client")
            services.limits.take(f"address {client[0] if client else ''}")
            return
        if self._table is None:
            document: Mapping[str, Any] = scope["app"].openapi()
            self._table = RouteTable(document)
        needs = self._table.needs(scope["method"], scope["path"])
        public = scope["path"] in PUBLIC_PATHS or is_page(scope["method"], scope["path"])
        if public or (needs and all(need.scope is None for _, need, _ in needs)):
            return
        principal = await services.keys.authenticate(_key_of(scope, headers, services))
        services.limits.take(f"key {principal.key_id}", principal.rate_per_second, principal.burst)
        for name, need, model in needs:
            permit(principal, name, need, model)
        if not needs and not _may_everything(principal):
            raise NotFoundError(f"no route matches {scope['method']} {scope['path']}")
        scope[PRINCIPAL] = principal


async def check_again(scope: Scope) -> None:
    """Check that a request which is still being answered would be admitted now, for streams without an end.

    What a key permits never changes, so it is enough that the key, and the session if it has one, are still valid.

    Raises:
        UnauthenticatedError: The key was revoked or has expired, the session has ended, or keys are required by now.
    """
    services: Services = scope["app"].state.services
    if services.keys.enforced:
        await services.keys.authenticate(_key_of(scope, Headers(scope=scope), services))


def cookie_name(headers: Headers) -> str:
    """Return the name of the session's cookie. Browsers send cookies to all ports of a host, so it has the port."""
    port = headers.get("host", "").rpartition(":")[2]
    return f"controlplane_session_{port}" if port.isascii() and port.isdigit() else "controlplane_session"


def session_cookie(headers: Headers) -> str:
    """Return the value of the session's cookie; empty if the request has none."""
    for header in headers.getlist("cookie"):
        for part in header.split(";"):
            name, _, value = part.strip().partition("=")
            if name == cookie_name(headers):
                return value
    return ""


def session_of(headers: Headers, services: Services) -> Session | None:
    """Return the session of a request; None if it has no cookie of one."""
    cookie = session_cookie(headers)
    return services.sessions.find(cookie) if cookie else None


def _key_of(scope: Scope, headers: Headers, services: Services) -> str | None:
    """Return the API key of a request: its own, or else that of its session.

    Raises:
        UnauthenticatedError: The Authorization header is not usable.
        ForbiddenError: It has a session and would change something, but no token that only the page knows.
    """
    given = bearer(headers)
    if given is not None or (session := session_of(headers, services)) is None:
        return given
    if scope["method"] not in _SAFE and not same_token(session, headers.get("x-csrf-token", "")):
        raise ForbiddenError("the request has a session's cookie, but not its X-CSRF-Token; reload the page")
    return session.api_key


def bearer(headers: Headers) -> str | None:
    """Return the key of a request.

    Raises:
        UnauthenticatedError: The header is not a bearer token, or occurs more than once.
    """
    given = headers.getlist("authorization")
    if not given:
        return None
    if len(given) > 1:
        raise UnauthenticatedError(f"the request has {len(given)} Authorization headers; send one")
    kind, _, token = given[0].partition(" ")
    if kind.lower() != "bearer" or not token.strip():
        raise UnauthenticatedError("the Authorization header must be `Bearer KEY`")
    return token.strip()


def principal_of(scope: Mapping[str, Any]) -> Principal | None:
    """Return the caller; None if API keys are not required."""
    principal: Principal | None = scope.get(PRINCIPAL)
    return principal


def _may_everything(principal: Principal) -> bool:
    return principal.models == () and "admin" in principal.scopes


def _check_browser(scope: Scope, headers: Headers, authentication: Authentication) -> None:
    if scope["method"] not in _SAFE and headers.get("sec-fetch-site") in OTHER_SITES:
        raise ForbiddenError(
            "the request comes from a page of another site; create an API key, or send the request without a browser"
        )
    if authentication is Authentication.OFF_LOOPBACK and (host := headers.get("host")):
        name = host.rpartition(":")[0] if ":" in host.rpartition("]")[2] else host
        if not is_loopback(name.strip("[]")):
            raise ForbiddenError(
                f"the Host header is {name[:128]!r}, but without API keys the control plane accepts "
                "only this machine's own names (127.0.0.1, ::1, localhost); create a key, or set "
                "CONTROLPLANE_AUTH__MODE=off behind a proxy that authenticates"
            )
