"""Errors of the client, beside those of `controlplane.errors`."""

from controlplane.errors import ControlPlaneError


class ClientError(ControlPlaneError):
    """The API answered with problem details.

    Attributes:
        code: The problem's ``code``: the error class of `controlplane.errors` in kebab-case.
        status: The HTTP status.
    """

    def __init__(self, message: str, *, code: str, status: int, **details: object) -> None:
        super().__init__(message, **details)
        self.code = code
        self.status = status


class NotRunningError(ControlPlaneError):
    """No control plane answers where one was looked for."""


class OperationFailedError(ControlPlaneError):
    """An operation ended as failed or cancelled, or a deployment settled without being Ready.

    Attributes:
        code: The problem's code, where the operation carries one.
    """

    def __init__(self, message: str, *, code: str = "", **details: object) -> None:
        super().__init__(message, **details)
        self.code = code


class ChildFailedError(ControlPlaneError):
    """A ``tritonctl`` that this one started in the background ended with an error.

    Attributes:
        status: Its exit code, which becomes ours.
    """

    def __init__(self, message: str, *, status: int, **details: object) -> None:
        super().__init__(message, **details)
        self.status = status


class WaitTimeoutError(ControlPlaneError):
    """What was waited for did not happen in the time that was given."""
