"""The table from errors to HTTP statuses, and all responses that are problem details."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError, ResponseValidationError
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from controlplane import errors
from controlplane.api.schemas.problems import MEDIA_TYPE, Problem
from controlplane.domain.validation import place, sentence
from controlplane.errors import ControlPlaneError, code_of
from controlplane.services.error_info import ErrorInfo, error_info

logger = logging.getLogger(__name__)

TYPE_PREFIX = "urn:triton-control-plane:error:"

# The first entry that an error is an instance of applies, so a class stands before its base.
STATUS: Mapping[type[ControlPlaneError], int] = {
    errors.TooLargeError: 413,
    errors.InvalidInputError: 422,
    errors.NotFoundError: 404,
    errors.IdempotencyMismatchError: 422,
    errors.ConflictError: 409,
    errors.UnauthenticatedError: 401,
    errors.RateLimitedError: 429,
    errors.AccessError: 403,
    errors.DeploymentFailedError: 502,
    errors.ConversionFailedError: 422,
    errors.StoreUnavailableError: 503,
    errors.CommitOutcomeUnknownError: 503,
    errors.StoreFullError: 507,
    errors.StoreWentBackwardsError: 409,
    errors.StoreError: 502,
    errors.TritonUnavailableError: 503,
    errors.TritonStartError: 503,
    errors.TritonTimeoutError: 504,
    errors.TritonError: 502,
    errors.TooManyWaitingError: 429,
    errors.GatewayError: 503,
    errors.AgentUnavailableError: 503,
    errors.AgentError: 502,
    errors.DeviceError: 503,
    errors.ControlPlaneError: 500,
}

_RETRY_AFTER_SECONDS = {503: "2"}


def status_of(error: ControlPlaneError) -> int:
    """Return the HTTP status of an error."""
    return next(status for kind, status in STATUS.items() if isinstance(error, kind))


def problem_response(fault: ErrorInfo, status: int, path: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return a problem as an HTTP response."""
    problem = Problem(
        type=TYPE_PREFIX + fault.code,
        title=fault.title,
        status=status,
        detail=fault.detail,
        instance=quote(path),
        code=fault.code,
        details=fault.details,
    )
    sent = dict(headers or {})
    if status in _RETRY_AFTER_SECONDS:
        sent.setdefault("Retry-After", _RETRY_AFTER_SECONDS[status])
    return Response(problem.model_dump_json(), status_code=status, media_type=MEDIA_TYPE, headers=sent)


def error_response(error: BaseException, path: str) -> Response:
    """Return the response to an error of any kind; an unexpected error reveals no internals."""
    if isinstance(error, ControlPlaneError):
        return problem_response(error_info(error), status_of(error), path, _headers(error))
    return problem_response(error_info(error), 500, path)


def _headers(error: ControlPlaneError) -> dict[str, str]:
    if isinstance(error, errors.UnauthenticatedError):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, errors.RateLimitedError):
        return {"Retry-After": str(error.details["retry_after_seconds"])}
    return {}


Documented = dict[int | str, dict[str, Any]]


def responses(*statuses: int, also: Documented | None = None) -> Documented:
    """Return the OpenAPI documentation of these problem responses, and of those that any route may send.

    Args:
        statuses: Statuses of problems.
        also: Responses that are not problems.
    """
    problems: Documented = {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in sorted({*statuses, 400, 401, 403, 404, 413, 422, 429, 500, 502, 503})
    }
    return {**(also or {}), **problems}


def install(app: FastAPI) -> None:
    """Install handlers that turn every error into a problem."""
    app.add_exception_handler(ControlPlaneError, _control_plane_error)
    app.add_exception_handler(RequestValidationError, _request_validation)
    app.add_exception_handler(ValidationError, _model_validation)
    app.add_exception_handler(ResponseValidationError, _response_validation)
    app.add_exception_handler(HTTPException, _http_exception)


async def _control_plane_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ControlPlaneError)
    status = status_of(error)
    if status >= 500:
        logger.warning("%s %s: %s: %s", request.method, request.scope["path"], type(error).__name__, error.message)
    return problem_response(error_info(error), status, request.scope["path"], _headers(error))


async def _request_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _invalid(request, error.errors())


async def _model_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, ValidationError)
    return _invalid(request, error.errors(include_url=False))


def _invalid(request: Request, found: Any) -> Response:
    wrong = [{"where": place(item["loc"]), "what": sentence(item), "kind": item["type"]} for item in found]
    first = wrong[0]
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    malformed = first["kind"] == "json_invalid"
    fault = ErrorInfo(
        code="malformed-request" if malformed else "invalid-request",
        title="Malformed request" if malformed else "Invalid request",
        detail=f"{first['where']}: {first['what']}{more}",
        details={"errors": wrong[:50]},
    )
    return problem_response(fault, 400 if malformed else 422, request.scope["path"])


async def _response_validation(request: Request, error: Exception) -> Response:
    logger.error("%s %s: the response does not match its schema", request.method, request.scope["path"], exc_info=error)
    return problem_response(error_info(error), 500, request.scope["path"])


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    known = {
        404: ("no-such-route", f"no route matches {request.scope['path']}"),
        405: ("method-not-allowed", f"{request.method} is not allowed for {request.scope['path']}"),
        413: ("too-large", str(error.detail)),
        400: ("malformed-request", str(error.detail)),
    }
    code, detail = known.get(error.status_code, ("http-error", str(error.detail)))
    fault = ErrorInfo(code=code, title=HTTPStatus(error.status_code).phrase, detail=detail)
    return problem_response(fault, error.status_code, path, error.headers)


def documented_codes() -> dict[str, int]:
    """Return every error code with its status, for the table in the documentation."""
    table: dict[str, int] = {}
    pending: list[type[ControlPlaneError]] = [ControlPlaneError]
    while pending:
        kind = pending.pop()
        # Only the public classes: errors that a module raises for itself never get here.
        pending.extend(child for child in kind.__subclasses__() if child.__module__ == errors.__name__)
        table[code_of(kind)] = next(status for base, status in STATUS.items() if issubclass(kind, base))
    return dict(sorted(table.items(), key=lambda item: (item[1], item[0])))
