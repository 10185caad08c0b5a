"""Errors of the client, in addition to those of `controlplane.errors`.

What the API refuses is also of the class that its code names: `ClientError` and `NotFoundError`, for example. A caller
catches the classes of `controlplane.errors` and need not know whether a check ran here or in the control plane.
"""

import re
from functools import cache
from typing import Any, TypeVar

from controlplane import errors
from controlplane.errors import ControlPlaneError

_Error = TypeVar("_Error", bound=ControlPlaneError)
_COMBINED: dict[tuple[type, type], Any] = {}


class ClientError(ControlPlaneError):
    """The API responded with problem details.

    Attributes:
        code: The problem's ``code``: the error class of `controlplane.errors` in kebab-case.
        status: The HTTP status.
    """

    def __init__(self, message: str, *, code: str, status: int, **details: object) -> None:
        super().__init__(message, **details)
        self.code = code
        self.status = status


class NotRunningError(ControlPlaneError):
    """No control plane answers at the expected address."""


class OperationFailedError(ControlPlaneError):
    """An operation ended as failed or cancelled, or a deployment settled without being Ready.

    Attributes:
        code: The problem's code, if the operation has one.
    """

    def __init__(self, message: str, *, code: str = "", **details: object) -> None:
        super().__init__(message, **details)
        self.code = code


class ChildFailedError(ControlPlaneError):
    """A ``tritonctl`` that this one started in the background ended with an error.

    Attributes:
        status: Its exit code, which this process returns as well.
    """

    def __init__(self, message: str, *, status: int, **details: object) -> None:
        super().__init__(message, **details)
        self.status = status


class WaitTimeoutError(ControlPlaneError):
    """The awaited state was not reached in the given time."""


def named(kind: type[_Error], code: str) -> type[_Error]:
    """Return a class that is of this kind, and of the class of `controlplane.errors` that a problem's code names.

    Args:
        kind: `ClientError` or `OperationFailedError`.
        code: The code, for example ``not-found``; an unknown one, of a newer server, adds nothing.
    """
    also = _by_code().get(code)
    if also is None:
        return kind
    if (kind, also) not in _COMBINED:
        # The names are those of the documented class, which is what a traceback should show.
        _COMBINED[kind, also] = type(
            also.__name__, (kind, also), {"__module__": also.__module__, "__doc__": also.__doc__}
        )
    found: type[_Error] = _COMBINED[kind, also]
    return found


def code_of(kind: type[BaseException]) -> str:
    """Return the code of an error's class: ``not-found`` for ``NotFoundError``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", kind.__name__.removesuffix("Error")).lower()


@cache
def _by_code() -> dict[str, type[ControlPlaneError]]:
    kinds = (one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, ControlPlaneError))
    found = {code_of(kind): kind for kind in kinds if kind is not ControlPlaneError}
    # What the API's schemas refuse.
    return found | dict.fromkeys(("invalid-request", "malformed-request"), errors.InvalidInputError)
