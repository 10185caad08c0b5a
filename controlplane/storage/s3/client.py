"""The boto3 client, its retries, and the translation of its errors."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
from botocore import exceptions as boto
from botocore.config import Config
from botocore.parsers import ResponseParserError

from controlplane.errors import (
    CommitOutcomeUnknownError,
    InvalidInputError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreAccessError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    UnsupportedStoreError,
)
from controlplane.settings import StoreSettings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

logger = logging.getLogger(__name__)

T = TypeVar("T")

_BACKOFF_FIRST_SECONDS = 0.1
_BACKOFF_LONGEST_SECONDS = 10.0
_CONNECT_TIMEOUT_SECONDS = 10.0


class Fault(Enum):
    """The classification of a failed attempt."""

    NOT_DONE = "the server did not process the request; retry"
    UNKNOWN = "no response: the server may have processed the request; retry"
    FINAL = "the server's final response; a retry would get the same"


_THROTTLED = frozenset(
    {
        "SlowDown", "SlowDownRead", "SlowDownWrite", "ServiceUnavailable", "Throttling", "ThrottlingException",
        "RequestLimitExceeded", "TooManyRequests", "XMinioServerNotInitialized", "RequestTimeout",
    }
)  # fmt: skip
_CONFLICTS = frozenset({"ConditionalRequestConflict", "OperationAborted"})
# The bytes were altered or truncated in transit, and the server refused them.
_DAMAGED = frozenset({"BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody"})
_DENIED = frozenset(
    {
        "AccessDenied", "AllAccessDisabled", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "Forbidden",
        "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired", "UnrecognizedClientException",
        "AuthorizationHeaderMalformed",
    }
)  # fmt: skip
_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "InsufficientCapacity"})
_LOST_ANSWER = (
    boto.ReadTimeoutError,
    boto.ConnectionClosedError,
    boto.HTTPClientError,
    boto.ResponseStreamingError,
    boto.IncompleteReadError,
    ResponseParserError,
)
_NOT_SENT = (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError)
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.ProfileNotFound,
)


def make_client(settings: StoreSettings) -> "S3Client":
    """Build a boto3 client without retries: `Requests` retries, because it knows the meaning of each failure."""
    path_style = settings.path_style if settings.path_style is not None else settings.endpoint_url is not None
    # Over plain HTTP the signature covers the bytes, so that the server refuses altered ones; TLS already does that.
    encrypted = settings.endpoint_url is None or settings.endpoint_url.lower().startswith("https:")
    secret = settings.secret_access_key.get_secret_value() if settings.secret_access_key else None
    config = Config(
        connect_timeout=min(_CONNECT_TIMEOUT_SECONDS, settings.timeout_seconds),
        read_timeout=settings.timeout_seconds,
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=2 * settings.concurrency + 16,
        # RGW and other servers do not support the checksum trailers that newer SDKs send by default; we verify digests
        # ourselves.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if path_style else "auto", "payload_signing_enabled": not encrypted},
    )
    try:
        return boto3.session.Session().client(
            "s3",
            endpoint_url=settings.endpoint_url,
            region_name=settings.region or ("us-east-1" if settings.endpoint_url else None),
            aws_access_key_id=settings.access_key_id,
            aws_secret_access_key=secret,
            config=config,
        )
    except ValueError as error:
        raise InvalidInputError(f"The S3 endpoint {settings.endpoint_url!r} is not a URL: {error}.") from error
    except _NO_CREDENTIALS as error:
        raise StoreAccessError(f"Failed to read the S3 credentials: {error}") from error
    except boto.BotoCoreError as error:
        raise InvalidInputError(f"The S3 settings are not valid: {error}") from error


@dataclass(frozen=True, slots=True)
class Requests:
    """Runs requests with retries and translates their errors.

    Attributes:
        where: The bucket and its endpoint, for messages; contains no secrets.
        retries: How often a failed request is retried.
    """

    where: str
    retries: int

    def run(self, what: str, attempt: Callable[[], T], *, key: str = "", commit: bool = False) -> T:
        """Run ``attempt`` until it returns a response, with at most ``retries`` retries.

        Args:
            what: The operation, for messages ("write").
            attempt: One request; it must read the body to the end.
            key: The object, for messages.
            commit: Whether the request is a create. If a response was lost and no later attempt shows the outcome,
                CommitOutcomeUnknownError is raised.

        Raises:
            CommitOutcomeUnknownError: The responses of a commit were lost.
            StoreError: The server reported an error.
        """
        lost = False
        for number in range(self.retries + 1):
            try:
                return attempt()
            except (boto.BotoCoreError, boto.ClientError, ResponseParserError, OSError) as error:
                fault = classify(error)
                lost = lost or fault is Fault.UNKNOWN
                if fault is Fault.FINAL or number == self.retries:
                    raise self._translate(error, what, key, unknown=commit and lost, tries=number + 1) from error
                wait = _backoff_seconds(number)
                logger.debug("%s %s failed (%s); attempt %d in %.2f s", what, key, error, number + 2, wait)
                time.sleep(wait)
        raise AssertionError("unreachable")

    def _translate(self, error: Exception, what: str, key: str, *, unknown: bool, tries: int) -> StoreError:
        subject = f"{what} object {key!r}" if key else what
        if unknown and code_of(error) not in {"PreconditionFailed", "412"}:
            return CommitOutcomeUnknownError(
                f"Could not find out whether object {key!r} was written to {self.where}: {error}. It may exist.",
                key=key,
            )
        return translate(error, subject=subject, where=self.where, key=key, tries=tries)


def classify(error: Exception) -> Fault:
    """Return the classification of a failed attempt."""
    if isinstance(error, boto.ClientError):
        code, status = code_of(error), status_of(error)
        if code in _THROTTLED | _CONFLICTS | _DAMAGED or status in {429, 503}:
            return Fault.NOT_DONE
        if code in _FULL or status in {501, 507}:
            return Fault.FINAL
        return Fault.UNKNOWN if status >= 500 or code == "InternalError" else Fault.FINAL
    if isinstance(error, _NOT_SENT):
        return Fault.NOT_DONE
    return Fault.UNKNOWN if isinstance(error, (*_LOST_ANSWER, OSError)) else Fault.FINAL


def translate(error: Exception, *, subject: str, where: str, key: str = "", tries: int = 1) -> StoreError:
    """Return the store error that corresponds to boto3's ``error``."""
    code, status = code_of(error), status_of(error)
    if code in {"PreconditionFailed", "412"} or status == 412:
        return ObjectExistsError(f"Object {key!r} already exists.", key=key)
    if code == "NoSuchBucket":
        return StoreUnavailableError(
            f"Could not {subject}: the bucket {where} does not exist. Create it, or correct the store's URL."
        )
    if code in {"NoSuchKey", "404", "NotFound"} or status == 404:
        return ObjectNotFoundError(f"Object {key!r} does not exist in {where}.", key=key)
    if code in _DENIED or status in {401, 403} or isinstance(error, _NO_CREDENTIALS):
        return StoreAccessError(
            f"Could not {subject}: {where} denied access ({code or error}). Check the access key, the secret, the "
            "bucket's policy and this machine's clock."
        )
    if code in _FULL or status == 507:
        return StoreFullError(f"Could not {subject}: {where} is full ({code}).")
    if status == 501 or code == "NotImplemented":
        return UnsupportedStoreError(f"Could not {subject}: {where} does not support this request ({code}).")
    tried = f" after {tries} attempts" if tries > 1 else ""
    return StoreUnavailableError(
        f"Could not {subject}: {where} is unreachable or unhealthy{tried} ({error}). Check the endpoint and that "
        "the server runs."
    )


def code_of(error: BaseException | None) -> str:
    """Return the S3 error code, or an empty string."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, boto.ClientError) else ""


def status_of(error: Exception) -> int:
    """Return the HTTP status, or 0."""
    if not isinstance(error, boto.ClientError):
        return 0
    metadata: Any = error.response.get("ResponseMetadata", {})
    return int(metadata.get("HTTPStatusCode", 0))


def _backoff_seconds(number: int) -> float:
    # "Full jitter": clients that failed together do not retry together.
    return random.uniform(0.5, 1.0) * min(_BACKOFF_LONGEST_SECONDS, _BACKOFF_FIRST_SECONDS * 2.0**number)
