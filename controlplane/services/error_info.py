"""Errors as data: the same document in a stored operation and, with a status, in an HTTP response."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from controlplane.domain.validation import invalid_field
from controlplane.errors import ControlPlaneError, code_of

INTERNAL_CODE = "internal-error"
_JSON: TypeAdapter[Any] = TypeAdapter(Any)


class ErrorInfo(BaseModel):
    """An error in machine-readable form."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    code: str = Field(description="The kind of error, in kebab case; stable.", examples=["not-found", "parity"])
    title: str = Field(description="The kind of error, in words.", examples=["Not found"])
    detail: str = Field(description="What is wrong, with which value, and what to do.")
    details: dict[str, Any] = Field(
        default_factory=dict, description="Machine-readable details: names, figures, limits."
    )


def error_info(error: BaseException) -> ErrorInfo:
    """Describe an error. An error that is not a `ControlPlaneError` reveals only its class."""
    if isinstance(error, ControlPlaneError):
        code = code_of(type(error))
        return ErrorInfo(code=code, title=_title(code), detail=error.message, details=_jsonable(error.details))
    if isinstance(error, ValidationError):
        return ErrorInfo(code="invalid-input", title="Invalid input", detail=invalid_field(error), details={})
    return ErrorInfo(
        code=INTERNAL_CODE,
        title="Internal error",
        detail=f"unexpected {type(error).__name__}; see the control plane's log",
    )


def _title(code: str) -> str:
    return code.replace("-", " ").capitalize()


def _jsonable(details: dict[str, Any]) -> dict[str, Any]:
    dumped: dict[str, Any] = _JSON.dump_python(details, mode="json", fallback=str)
    return dumped
