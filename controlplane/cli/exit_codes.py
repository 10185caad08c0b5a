"""Exit codes, and the mapping from errors to them. Scripts rely on these numbers: they never change their meaning."""

from enum import IntEnum

from controlplane.client.errors import (
    ChildFailedError,
    ClientError,
    NotRunningError,
    OperationFailedError,
    WaitTimeoutError,
    code_of,
)
from controlplane.errors import (
    AccessError,
    AgentError,
    AgentUnavailableError,
    ConflictError,
    ControlPlaneError,
    ConversionFailedError,
    InvalidInputError,
    NotFoundError,
    StoreUnavailableError,
    StoreWentBackwardsError,
    TritonError,
    TritonTimeoutError,
    TritonUnavailableError,
)
from controlplane.sources.errors import SourceError, SourceUnavailableError


class ExitCode(IntEnum):
    """The exit codes of all commands."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_FOUND = 3
    UNREACHABLE = 4
    CONFLICT = 5
    INVALID = 6
    FAILED = 7
    TIMEOUT = 8
    DENIED = 9
    INTERRUPTED = 130


EXIT_HELP = {
    ExitCode.OK: "success",
    ExitCode.FAILURE: "any other failure",
    ExitCode.USAGE: "invalid command line",
    ExitCode.NOT_FOUND: "no such model, version, alias, deployment, …",
    ExitCode.UNREACHABLE: "the control plane, the store, Triton or a source of models is unreachable",
    ExitCode.CONFLICT: "conflict with the present state (in use, exists already, …)",
    ExitCode.INVALID: "invalid input (a name, a file, settings, …)",
    ExitCode.FAILED: "the conversion, the deployment, the inference, a download or a check failed",
    ExitCode.TIMEOUT: "timeout",
    ExitCode.DENIED: "not allowed: no API key, a key without the permission, or too many requests",
    ExitCode.INTERRUPTED: "interrupted with Ctrl-C",
}


_BY_CLASS: tuple[tuple[type[ControlPlaneError], ExitCode], ...] = (
    (NotRunningError, ExitCode.UNREACHABLE),
    (WaitTimeoutError, ExitCode.TIMEOUT),
    (OperationFailedError, ExitCode.FAILED),
    (AccessError, ExitCode.DENIED),
    (NotFoundError, ExitCode.NOT_FOUND),
    (ConflictError, ExitCode.CONFLICT),
    (InvalidInputError, ExitCode.INVALID),
    (ConversionFailedError, ExitCode.FAILED),
    (SourceUnavailableError, ExitCode.UNREACHABLE),
    (SourceError, ExitCode.FAILED),
    (StoreUnavailableError, ExitCode.UNREACHABLE),
    (StoreWentBackwardsError, ExitCode.CONFLICT),
    (AgentUnavailableError, ExitCode.UNREACHABLE),
    (AgentError, ExitCode.FAILED),
    (TritonUnavailableError, ExitCode.UNREACHABLE),
    (TritonTimeoutError, ExitCode.TIMEOUT),
    (TritonError, ExitCode.FAILED),
)
_BY_STATUS = {
    400: ExitCode.INVALID,
    401: ExitCode.DENIED,
    403: ExitCode.DENIED,
    404: ExitCode.NOT_FOUND,
    409: ExitCode.CONFLICT,
    412: ExitCode.CONFLICT,
    413: ExitCode.INVALID,
    415: ExitCode.INVALID,
    422: ExitCode.INVALID,
    429: ExitCode.DENIED,
    502: ExitCode.FAILED,
    503: ExitCode.UNREACHABLE,
    504: ExitCode.TIMEOUT,
}


def exit_code(error: ControlPlaneError) -> ExitCode:
    """Return the exit code of an error by its own class, then by the API's code, then by the HTTP status."""
    if isinstance(error, ChildFailedError):
        return ExitCode(error.status) if error.status in set(ExitCode) else ExitCode.FAILURE
    code = getattr(error, "code", "")
    for cls, result in _BY_CLASS:
        if isinstance(error, cls) and cls is not OperationFailedError:
            return result
    for cls, result in _BY_CLASS:
        if code and _is_code_of(code, cls):
            return result
    if isinstance(error, ClientError):
        return _BY_STATUS.get(error.status, ExitCode.FAILURE)
    return ExitCode.FAILED if isinstance(error, OperationFailedError) else ExitCode.FAILURE


def error_code(error: ControlPlaneError) -> str:
    """Return the kind of an error for programs: the API's code, or the class's name in the same form."""
    return getattr(error, "code", "") or code_of(type(error))


def _is_code_of(code: str, cls: type[ControlPlaneError]) -> bool:
    """Return whether the code names this class or a subclass."""
    names = {code_of(cls)} | {code_of(below) for below in _below(cls)}
    return code.removesuffix("-error") in names


def _below(cls: type[ControlPlaneError]) -> list[type[ControlPlaneError]]:
    return [inner for direct in cls.__subclasses__() for inner in (direct, *_below(direct))]
