"""Sessions of browsers, for the page at ``/ui``."""

from fastapi import APIRouter, Request, Response

from controlplane.api.answers import json_answer
from controlplane.api.auth import OTHER_SITES, bearer, cookie_name, session_cookie, session_of
from controlplane.api.dependencies import App
from controlplane.api.problems import responses
from controlplane.api.schemas.sessions import SessionView, SignIn, SignInCode
from controlplane.domain.access import Scope
from controlplane.errors import ForbiddenError, InvalidInputError, UnauthenticatedError
from controlplane.services.sessions import CODE_SECONDS, LIFETIME_SECONDS, same_token

router = APIRouter(prefix="/session", tags=["session"])

_NOT_STORED = {"Cache-Control": "no-store"}
_SIGN_INS_PER_SECOND, _SIGN_INS_AT_ONCE = 0.5, 10
_EVERYTHING = SessionView(required=False, signed_in=True, scopes=tuple(sorted(Scope)))


@router.get("", operation_id="getSession", response_model=SessionView, responses=responses())
async def get_session(request: Request, services: App) -> Response:
    """Return who the caller is, by session or by API key; `signed_in` is false without a valid one."""
    if not services.keys.enforced:
        return json_answer(_EVERYTHING, headers=_NOT_STORED)
    session = session_of(request.headers, services)
    given = bearer(request.headers)
    try:
        principal = await services.keys.authenticate(given or (session.api_key if session else None))
    except UnauthenticatedError:
        return json_answer(SessionView(required=True, signed_in=False), headers=_NOT_STORED)
    return json_answer(
        SessionView.of(principal, session.csrf_token if session and not given else ""), headers=_NOT_STORED
    )


@router.post("", operation_id="signIn", response_model=SessionView, responses=responses())
async def sign_in(request: Request, services: App, body: SignIn) -> Response:
    """Open a session with an API key or a code, and set its cookie.

    The cookie is HttpOnly and SameSite=Strict. The session is known to this instance alone, and ends after 12 hours,
    with its key, or with the instance.
    """
    if not services.keys.enforced:
        return json_answer(_EVERYTHING, headers=_NOT_STORED)
    if request.headers.get("sec-fetch-site") in OTHER_SITES:
        # Otherwise another site could sign a browser in with its own key, and see what the person does with it.
        raise ForbiddenError("the sign-in comes from a page of another site; open the control plane's own page")
    if bool(body.api_key) == bool(body.code):
        raise InvalidInputError("send either an API key (api_key) or a sign-in code (code)")
    address = request.client.host if request.client else ""
    services.limits.take(f"sign-in {address}", _SIGN_INS_PER_SECOND, _SIGN_INS_AT_ONCE)
    opened = services.sessions.redeem(body.code) if body.code else services.sessions.open(body.api_key.strip())
    cookie, session, principal = await opened
    answer = json_answer(SessionView.of(principal, session.csrf_token), headers=_NOT_STORED)
    answer.set_cookie(
        cookie_name(request.headers),
        cookie,
        max_age=int(LIFETIME_SECONDS),
        httponly=True,
        samesite="strict",
        secure=_is_encrypted(request),
    )
    return answer


@router.delete("", operation_id="signOut", status_code=204, responses=responses())
async def sign_out(request: Request, services: App) -> Response:
    """End the session of the request's cookie, if it has one."""
    session = session_of(request.headers, services)
    if session is not None and not same_token(session, request.headers.get("x-csrf-token", "")):
        raise ForbiddenError("the request has a session's cookie, but not its X-CSRF-Token; reload the page")
    services.sessions.end(session_cookie(request.headers))
    answer = Response(status_code=204)
    answer.delete_cookie(cookie_name(request.headers), httponly=True, samesite="strict")
    return answer


@router.post("/codes", operation_id="createSignInCode", response_model=SignInCode, responses=responses())
async def create_sign_in_code(request: Request, services: App) -> Response:
    """Return a code that opens one session with the caller's key within a minute, for `tritonctl ui`."""
    key = bearer(request.headers)
    if key is None:
        raise InvalidInputError("send the API key that the session is for as `Authorization: Bearer KEY`")
    code = services.sessions.code(key) if services.keys.enforced else ""
    return json_answer(SignInCode(code=code, expires_in_seconds=CODE_SECONDS), headers=_NOT_STORED)


def _is_encrypted(request: Request) -> bool:
    # A browser names the page's own scheme in Origin, also where a proxy that we need not trust ends TLS.
    return "https" in {request.url.scheme, request.headers.get("origin", "").partition(":")[0]}
