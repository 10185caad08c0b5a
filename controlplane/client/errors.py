"""Errors of the client, in addition to those of `controlplane.errors`."""

from controlplane.errors import ControlPlaneError


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
