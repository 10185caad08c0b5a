"""The exception tree.

Errors carry data, never HTTP codes: one table in ``controlplane.api`` maps them to problem details and the CLI maps
those to exit codes. Adapters translate the exceptions of their SDK (``raise ... from``); exceptions of boto3, gRPC or
torch never leave their adapter. A message says what is wrong, with which value, and what to do.

::

    ControlPlaneError
    ├── InvalidInputError            the caller's input cannot be accepted
    │   ├── InvalidNameError         a model, alias or file name breaks the rules
    │   ├── InvalidReferenceError    not of the form name, name:7 or name@alias
    │   ├── InvalidArtifactError     a file is not what it claims, is truncated, or is unsafe
    │   ├── UntrustedArtifactError   reading it would run its code, and the request does not set trust
    │   ├── UnverifiedVersionError   no trusted key signed this version in its current form
    │   ├── UnsupportedConversionError  no converter for this pair of formats
    │   ├── InvalidConfigError       Triton settings that contradict the signature or each other
    │   └── TooLargeError            more bytes than a limit allows
    ├── NotFoundError                model, version, alias, deployment, revision, operation, upload, server
    ├── ConflictError                the request is valid, but the current state forbids it
    │   ├── AlreadyExistsError
    │   ├── InUseError               a deployment or an alias still needs it
    │   ├── CommitConflictError      another process committed first; read again and retry
    │   ├── ClockSkewError           this machine's clock and the store's differ by too much
    │   ├── InsufficientMemoryError  a device's budget has no room for it
    │   └── IdempotencyMismatchError same Idempotency-Key, different request
    ├── AccessError                  the caller has no access
    │   ├── UnauthenticatedError     no API key, or one that is unknown, expired or revoked
    │   ├── ForbiddenError           the key lacks the scope, or is not for this model
    │   └── RateLimitedError         more requests than the limit allows
    ├── DeploymentFailedError        a deployment cannot be made to answer
    ├── ConversionFailedError        the converter, or its worker process, failed
    │   └── ParityError              the converted model does not compute the same as the original
    ├── StoreError                   the object store
    │   ├── ObjectNotFoundError
    │   ├── ObjectExistsError        a create-only put lost
    │   ├── StoreUnavailableError    down, throttled or unreachable after retries
    │   ├── StoreAccessError         credentials or permissions
    │   ├── StoreFullError           no space left
    │   ├── UnsupportedStoreError    detected at start: no conditional put
    │   ├── CommitOutcomeUnknownError  a commit was sent and its answer was lost; check it, never delete it
    │   ├── DigestMismatchError      the bytes read are not the bytes that were written
    │   ├── DamagedRevisionError     an object in a chain is not a revision, or was changed after it was written
    │   └── StoreWentBackwardsError  a committed revision is missing from the store; an operator must decide
    ├── GatewayError                 the gateway's HAProxy cannot be started, or does not execute a command
    │   ├── ModelUnavailableError    a model cannot answer a request now
    │   └── TooManyWaitingError      the requests that wait for models exceed a limit in number or bytes
    ├── AgentError                   the agent beside a Triton server refused or failed
    │   └── AgentUnavailableError    unreachable, or its answer was lost; asking again is harmless
    ├── DeviceError                  a source of device readings (NVML, Triton's metrics) cannot be read
    └── TritonError                  a Triton server
        ├── TritonUnavailableError   unreachable
        ├── TritonTimeoutError       a call's deadline passed; what the server does is unknown
        ├── LoadRefusedError         Triton refused a load, with its reason
        ├── InferenceError           Triton refused or failed an inference
        ├── TritonStartError         an embedded server did not start; carries the end of its log
        └── ProofError               Triton's answer to a golden sample is not the recorded one
"""

import re
from typing import Any

_WORD = re.compile(r"(?<!^)(?=[A-Z])")


class ControlPlaneError(Exception):
    """Root of every error that this package raises on purpose.

    Attributes:
        message: One line for a person.
        details: JSON-serializable facts for a program (names, values, limits).
    """

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class InvalidInputError(ControlPlaneError):
    """The caller's input cannot be accepted."""


class InvalidNameError(InvalidInputError):
    """A model, alias or file name breaks the rules."""


class InvalidReferenceError(InvalidInputError):
    """A reference is not of the form ``name``, ``name:7`` or ``name@alias``."""


class InvalidArtifactError(InvalidInputError):
    """A file is not what it claims to be, is truncated, or is unsafe."""


class UntrustedArtifactError(InvalidInputError):
    """Reading the artifact would run code that it contains, and the request does not set ``trust``."""


class UnverifiedVersionError(InvalidInputError):
    """No trusted key has signed this version in its current form."""


class UnsupportedConversionError(InvalidInputError):
    """There is no converter for this pair of formats."""


class InvalidConfigError(InvalidInputError):
    """Triton settings contradict the signature or each other."""


class TooLargeError(InvalidInputError):
    """More bytes than a limit allows."""


class NotFoundError(ControlPlaneError):
    """A named object does not exist."""


class ConflictError(ControlPlaneError):
    """The request is valid, but the current state forbids it."""


class AlreadyExistsError(ConflictError):
    """An object of this name already exists."""


class InUseError(ConflictError):
    """A deployment or an alias still needs the object."""


class CommitConflictError(ConflictError):
    """Another process committed this revision first; read again and retry."""


class ClockSkewError(ConflictError):
    """This machine's clock and the store's differ by too much to decide by age what can be removed."""


class InsufficientMemoryError(ConflictError):
    """A device's budget has no room for a model; the details list the needed, free and used memory."""


class IdempotencyMismatchError(ConflictError):
    """The same Idempotency-Key came with a different request."""


class AccessError(ControlPlaneError):
    """The caller has no access to the requested object."""


class UnauthenticatedError(AccessError):
    """No API key came with the request, or one that is unknown, expired or revoked."""


class ForbiddenError(AccessError):
    """The key is valid, but lacks the scope or is not for this model."""


class RateLimitedError(AccessError):
    """More requests than the limit allows; the details say how many seconds to wait."""


class DeploymentFailedError(ControlPlaneError):
    """A deployment cannot be made to answer; the message says why."""


class ConversionFailedError(ControlPlaneError):
    """The converter or its process failed."""


class ParityError(ConversionFailedError):
    """The converted model does not compute the same as the original."""


class StoreError(ControlPlaneError):
    """The object store failed."""


class ObjectNotFoundError(StoreError):
    """No object has this key."""


class ObjectExistsError(StoreError):
    """A create-only put lost: the key already exists."""


class StoreUnavailableError(StoreError):
    """The store is down, throttling or unreachable, even after retries."""


class StoreAccessError(StoreError):
    """Credentials or permissions were refused."""


class StoreFullError(StoreError):
    """No space left in the store or on the local disk."""


class UnsupportedStoreError(StoreError):
    """The store does not honour ``If-None-Match: *``; detected by the check at start."""


class CommitOutcomeUnknownError(StoreError):
    """A commit was sent and its answer was lost. It may have succeeded: check it, never delete it."""


class DigestMismatchError(StoreError):
    """The bytes read are not the bytes that were written."""


class DamagedRevisionError(StoreError):
    """An object in a chain is not a revision, or was changed after it was written."""


class StoreWentBackwardsError(StoreError):
    """A committed revision is missing from the store, or has been replaced by another one.

    Nothing is committed to the chain until an operator decides with ``tritonctl fsck``. The details name the chain and
    the lost revision.
    """


class GatewayError(ControlPlaneError):
    """The gateway's HAProxy cannot be started, or does not execute a command."""


class ModelUnavailableError(GatewayError):
    """A model cannot answer a request now; the message says why."""


class TooManyWaitingError(GatewayError):
    """The requests that wait for models exceed a limit in number or bytes."""


class AgentError(ControlPlaneError):
    """The agent beside a Triton server refused or failed."""


class AgentUnavailableError(AgentError):
    """The agent cannot be reached, or its answer was lost. Every request to it can be repeated without harm."""


class DeviceError(ControlPlaneError):
    """A source of device readings cannot be read as a whole."""


class TritonError(ControlPlaneError):
    """A Triton server refused or failed."""


class TritonUnavailableError(TritonError):
    """The server cannot be reached."""


class TritonTimeoutError(TritonError):
    """A call's deadline passed. Whether the server executes the call is unknown."""


class LoadRefusedError(TritonError):
    """Triton refused a load; the message contains its reason."""


class InferenceError(TritonError):
    """Triton refused or failed an inference."""


class TritonStartError(TritonError):
    """An embedded server did not start; the message contains the end of its log."""


class ProofError(TritonError):
    """Triton's answer to a golden sample is not the recorded one."""


def code_of(kind: type[BaseException]) -> str:
    """Return an error class's name in kebab case, for example ``not-found`` for ``NotFoundError``."""
    return _WORD.sub("-", kind.__name__.removesuffix("Error")).lower()
