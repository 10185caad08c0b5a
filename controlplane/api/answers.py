"""Responses that are sent without a second validation of what is already a model."""

from collections.abc import Mapping

from fastapi import Response
from pydantic import BaseModel

from controlplane.services.operations import Operation


def json_answer(body: BaseModel | bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with a model, or with finished JSON."""
    content = body if isinstance(body, bytes) else body.__pydantic_serializer__.to_json(body)
    return Response(content, status_code=status, media_type="application/json", headers=dict(headers or {}))


def accepted(operation: Operation) -> Response:
    """Return 202 with the operation and the URL to follow it."""
    return json_answer(operation, 202, {"Location": f"/v1/operations/{operation.id}"})
