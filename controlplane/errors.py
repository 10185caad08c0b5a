"""The exception tree.

Errors carry data, never HTTP codes: one table in ``controlplane.api`` maps them to problem details and the CLI maps
those to exit codes. Adapters translate what their SDK raises (``raise ... from``); nothing of boto3, gRPC or torch
leaves its adapter. A message says what was wrong, with which value, and what to do.

::

    ControlPlaneError
    ├── InvalidInputError            what the caller gave cannot be accepted
    │   ├── InvalidNameError         a model, alias or file name breaks the rules
    │   ├── InvalidReferenceError    not of the form name, name:7 or name@alias
    │   ├── InvalidArtifactError     a file is not what it claims, is cut short, or is unsafe
    │   ├── UntrustedArtifactError   reading it would run its code, and nobody said trust
    │   ├── UnverifiedVersionError   no trusted key signed this version as it is
    │   ├── UnsupportedConversionError  no converter for this pair of formats
    │   ├── InvalidConfigError       Triton settings that contradict the signature or each other
    │   └── TooLargeError            more bytes than a limit allows
    ├── NotFoundError                model, version, alias, deployment, revision, operation, upload, server
    ├── ConflictError                the request was valid, the state forbids it
    │   ├── AlreadyExistsError
    │   ├── InUseError               a deployment or an alias still needs it
    │   ├── CommitConflictError      somebody else committed first; re-read and try again
    │   ├── ClockSkewError           this machine's clock and the store's differ by too much
    │   ├── InsufficientMemoryError  a device's budget has no room for it
    │   └── IdempotencyMismatchError same Idempotency-Key, different request
    ├── AccessError                  who asks may not have it
    │   ├── UnauthenticatedError     no API key, or one that is unknown, expired or revoked
    │   ├── ForbiddenError           the key has not the scope, or is not for this model
    │   └── RateLimitedError         more requests than the limit allows
    ├── DeploymentFailedError        what is deployed cannot be brought to answer
    ├── ConversionFailedError        the converter, or its worker process, failed
    │   └── ParityError              the converted model does not compute what the original did
    ├── StoreError                   the object store
    │   ├── ObjectNotFoundError
    │   ├── ObjectExistsError        a create-only put lost
    │   ├── StoreUnavailableError    down, throttled or unreachable after retries
    │   ├── StoreAccessError         credentials or permissions
    │   ├── StoreFullError           no space left
    │   ├── UnsupportedStoreError    found out at start: no conditional put
    │   ├── CommitOutcomeUnknownError  a commit was sent and its answer lost; look, never delete
    │   ├── DigestMismatchError      bytes read are not the bytes that were written
    │   ├── DamagedRevisionError     an object in a chain is no revision, or not as it was written
    │   └── StoreWentBackwardsError  a committed revision is not in the store any more; an operator must decide
    ├── GatewayError                 the gateway: HAProxy cannot be started, or does not do what it is told
    │   ├── ModelUnavailableError    a model cannot be brought to answer a request now
    │   └── TooManyWaitingError      more requests, or bytes of them, wait for models than a limit allows
    ├── DeviceError                  a source of device readings (NVML, Triton's metrics) cannot be read
    └── TritonError                  a Triton server
        ├── TritonUnavailableError   not reachable
        ├── TritonTimeoutError       a call's deadline passed; what the server does is unknown
        ├── LoadRefusedError         Triton said no to a load, with its reason
        ├── InferenceError           Triton refused or failed an inference
        ├── TritonStartError         an embedded server did not start; carries the end of its log
        └── ProofError               Triton's answer to a golden sample is not the recorded one
"""

from typing import Any


class ControlPlaneError(Exception):
    """Root of every error this package raises on purpose.

    Attributes:
        message: One line for a person.
        details: JSON-able facts for a program (names, figures, limits).
    """

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class InvalidInputError(ControlPlaneError):
    """What the caller gave cannot be accepted."""


class InvalidNameError(InvalidInputError):
    """A model, alias or file name breaks the rules."""


class InvalidReferenceError(InvalidInputError):
    """A reference is not of the form ``name``, ``name:7`` or ``name@alias``."""


class InvalidArtifactError(InvalidInputError):
    """A file is not what it claims to be, is cut short, or is unsafe."""


class UntrustedArtifactError(InvalidInputError):
    """Reading the artifact would run code it carries, and nobody said ``trust``."""


class UnverifiedVersionError(InvalidInputError):
    """No trusted key has signed this version as it is."""


class UnsupportedConversionError(InvalidInputError):
    """There is no converter for this pair of formats."""


class InvalidConfigError(InvalidInputError):
    """Triton settings contradict the signature or each other."""


class TooLargeError(InvalidInputError):
    """More bytes than a limit allows."""


class NotFoundError(ControlPlaneError):
    """Something named does not exist."""


class ConflictError(ControlPlaneError):
    """The request was valid, the present state forbids it."""


class AlreadyExistsError(ConflictError):
    """Something of that name is there already."""


class InUseError(ConflictError):
    """A deployment or an alias still needs it."""


class CommitConflictError(ConflictError):
    """Somebody else committed this revision first; re-read and try again."""


class ClockSkewError(ConflictError):
    """This machine's clock and the store's differ by too much to judge by ages what may be removed."""


class InsufficientMemoryError(ConflictError):
    """A device's budget has no room for a model; the details say what is needed, what is free, what holds the rest."""


class IdempotencyMismatchError(ConflictError):
    """The same Idempotency-Key came with a different request."""


class AccessError(ControlPlaneError):
    """Who asks may not have what was asked for."""


class UnauthenticatedError(AccessError):
    """No API key came with the request, or one that is unknown, expired or revoked."""


class ForbiddenError(AccessError):
    """The key is good, and has not the scope, or is not for this model."""


class RateLimitedError(AccessError):
    """More requests than the limit allows; the details say how many seconds to wait."""


class DeploymentFailedError(ControlPlaneError):
    """What is deployed cannot be brought to answer; the message says why."""


class ConversionFailedError(ControlPlaneError):
    """The converter, or the process it ran in, failed."""


class ParityError(ConversionFailedError):
    """The converted model does not compute what the original computes."""


class StoreError(ControlPlaneError):
    """The object store failed."""


class ObjectNotFoundError(StoreError):
    """No object has this key."""


class ObjectExistsError(StoreError):
    """A create-only put lost: the key is taken."""


class StoreUnavailableError(StoreError):
    """The store is down, throttling or unreachable, also after retries."""


class StoreAccessError(StoreError):
    """Credentials or permissions were refused."""


class StoreFullError(StoreError):
    """No space left in the store or on the local disk."""


class UnsupportedStoreError(StoreError):
    """The store does not honour ``If-None-Match: *``; found out by the probe at start."""


class CommitOutcomeUnknownError(StoreError):
    """A commit was sent and its answer was lost. It may have won: look, never delete."""


class DigestMismatchError(StoreError):
    """The bytes read are not the bytes that were written."""


class DamagedRevisionError(StoreError):
    """An object in a chain is no revision, or not as it was written."""


class StoreWentBackwardsError(StoreError):
    """A revision that was committed is not in the store any more, or another one has its place.

    Nothing is committed to the chain until an operator decides with ``tritonctl fsck``. The details name the chain and
    the lost revision.
    """


class GatewayError(ControlPlaneError):
    """The gateway's HAProxy cannot be started, or does not do what it is told."""


class ModelUnavailableError(GatewayError):
    """A model cannot be brought to answer a request now; the message says why."""


class TooManyWaitingError(GatewayError):
    """More requests, or bytes of them, wait for models than a limit allows."""


class DeviceError(ControlPlaneError):
    """A source of device readings cannot be read as a whole."""


class TritonError(ControlPlaneError):
    """A Triton server refused or failed."""


class TritonUnavailableError(TritonError):
    """The server cannot be reached."""


class TritonTimeoutError(TritonError):
    """A call's deadline passed. What the server does with it is unknown."""


class LoadRefusedError(TritonError):
    """Triton refused a load; the message carries its reason."""


class InferenceError(TritonError):
    """Triton refused or failed an inference."""


class TritonStartError(TritonError):
    """An embedded server did not start; the message carries the end of its log."""


class ProofError(TritonError):
    """Triton's answer to a golden sample is not the recorded one."""
