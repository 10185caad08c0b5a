"""Responses that are sent without a second validation of what is already a model."""

from collections.abc import Mapping
from typing import Any

from fastapi import Response
from pydantic import BaseModel

from controlplane.api.dependencies import IDEMPOTENT
from controlplane.api.problems import responses
from controlplane.services.operations import Operation

STARTS_OPERATION: Mapping[str, Any] = {
    "dependencies": [IDEMPOTENT],
    "status_code": 202,
    "response_model": Operation,
    "responses": responses(409, also={202: {"description": "Started; follow the operation."}}),
}
"""Options of a route that starts an operation and returns it with `accepted`."""


def json_answer(body: BaseModel | bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with a model, or with finished JSON."""
    content = body if isinstance(body, bytes) else body.__pydantic_serializer__.to_json(body)
    return Response(content, status_code=status, media_type="application/json", headers=dict(headers or {}))


def accepted(operation: Operation) -> Response:
    """Return 202 with the operation and the URL to follow it."""
    return json_answer(operation, 202, {"Location": f"/v1/operations/{operation.id}"})
