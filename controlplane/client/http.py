"""A typed client of the REST API: one method per route that the commands use.

It uses only HTTP, as any user's program would. Problem details become `ClientError`; a missing response becomes
`NotRunningError`.
"""

import getpass
import json
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from controlplane.client.credentials import Credentials
from controlplane.client.errors import ClientError, NotRunningError, WaitTimeoutError, named
from controlplane.domain.validation import invalid_field

_T = TypeVar("_T", bound=BaseModel)
CONNECT_SECONDS = 5.0
_READ_SECONDS = 60.0
_RETRY_AFTER_MAX_SECONDS = 10.0
_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})


def connect(url: str, credentials: Credentials, headers: dict[str, str] | None = None) -> httpx.Client:
    """Return an HTTP client that sends the key and trusts the certificates of ``credentials``."""
    key = {"Authorization": f"Bearer {credentials.api_key}"} if credentials.api_key else {}
    return httpx.Client(
        base_url=url,
        headers={**(headers or {}), **key},
        verify=credentials.tls() if url.startswith("https:") else False,
        timeout=httpx.Timeout(_READ_SECONDS, connect=CONNECT_SECONDS),
        # A proxy for the internet must not be used for the control plane of this machine.
        trust_env=not is_loopback(url),
    )


class Connection:
    """An open HTTP connection; use it as a context manager, which closes it.

    Args:
        url: Base URL.
        credentials: The credentials to send and the certificates to trust.
        headers: Headers of every request.
    """

    def __init__(self, url: str, credentials: Credentials, headers: dict[str, str] | None = None) -> None:
        self.url = url
        self._http = connect(url, credentials, headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()


class Client(Connection):
    """A connection to one control plane.

    Args:
        url: Base URL, such as ``http://127.0.0.1:8090``.
        actor: The caller's name for the history; default ``user@host``.
        credentials: The credentials to send and the certificates to trust.
    """

    def __init__(self, url: str, *, actor: str | None = None, credentials: Credentials | None = None) -> None:
        self.credentials = credentials or Credentials()
        headers = {"X-Actor": _header(actor or whoami()), "Accept": "application/json"}
        super().__init__(url.rstrip("/"), self.credentials, headers)

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        content: Any = None,
        read_seconds: float = _READ_SECONDS,
    ) -> httpx.Response:
        """Send one request and return the response, of any kind, unless it is an error.

        Raises:
            ClientError: The API refused, with its problem details.
            NotRunningError: Nothing answers at the address.
            WaitTimeoutError: There is no response in time.
        """
        sent = dict(headers or {})
        if method == "POST":
            # The second attempt has the same key, so that a POST whose response was lost is not done twice.
            sent.setdefault("Idempotency-Key", uuid.uuid4().hex)
        attempts = 1 if content is not None else 3
        timeout = httpx.Timeout(read_seconds, connect=CONNECT_SECONDS)
        for attempt in range(attempts):
            try:
                response = self._http.request(
                    method,
                    path,
                    json=body,
                    params=_given(params),
                    headers=sent,
                    content=content,
                    timeout=timeout,
                )
            except httpx.TransportError as error:
                if attempt == 0 and attempts > 1 and isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
                    continue
                raise self.translate(error) from error
            if response.status_code == httpx.codes.TOO_MANY_REQUESTS and attempt + 1 < attempts:
                time.sleep(_retry_after(response))
                continue
            if response.is_error:
                raise problem(response)
            return response
        raise AssertionError("the loop above returns or raises")

    def translate(self, error: httpx.TransportError) -> NotRunningError | WaitTimeoutError:
        """Return the error for a failed connection."""
        if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
            return WaitTimeoutError(f"{self.url} did not answer in time; is the machine overloaded?", url=self.url)
        if isinstance(error, httpx.UnsupportedProtocol):
            return NotRunningError(f"{self.url!r} is not a valid control-plane URL; use http://HOST:PORT", url=self.url)
        reason = str(error) or type(error).__name__
        if "SSL" in reason or "TLS" in reason:
            return NotRunningError(
                f"the TLS connection to {self.url} failed ({reason}); set the certificate to trust with --ca-file, "
                "a client certificate with --client-cert, or use http:// if the control plane does not use TLS",
                url=self.url,
            )
        return NotRunningError(
            f"no control plane answers at {self.url} ({reason}); start one with `tritonctl up`, or set the address of "
            "a running one with --url",
            url=self.url,
        )

    def get(self, path: str, *, read_seconds: float = _READ_SECONDS, **params: Any) -> Any:
        """GET a JSON document."""
        return self._json(self.call("GET", path, params=params, read_seconds=read_seconds))

    def readiness(self) -> Any:
        """Return the response of ``/readyz``, also if the control plane is not ready."""
        try:
            response = self._http.request(
                "GET", "/readyz", timeout=httpx.Timeout(_READ_SECONDS, connect=CONNECT_SECONDS)
            )
        except httpx.TransportError as error:
            raise self.translate(error) from error
        if response.status_code not in {200, 503}:
            raise problem(response)
        return self._json(response)

    def fetch(self, kind: type[_T], path: str, **params: Any) -> _T:
        """GET a JSON document and parse it as ``kind``."""
        return self.read(kind, self.get(path, **params))

    def post(self, path: str, body: Any = None, *, read_seconds: float = _READ_SECONDS, **params: Any) -> Any:
        """POST JSON and return the JSON of the response."""
        return self._json(self.call("POST", path, body=body, params=params, read_seconds=read_seconds))

    def put(self, path: str, body: Any, **params: Any) -> Any:
        """PUT JSON and return the JSON of the response."""
        return self._json(self.call("PUT", path, body=body, params=params))

    def delete(self, path: str, **params: Any) -> Any:
        """Send DELETE and return the JSON of the response, if any."""
        return self._json(self.call("DELETE", path, params=params))

    def items(self, path: str, *, at_most: int | None = None, **params: Any) -> Iterator[Any]:
        """Yield the items of all pages of a list."""
        cursor: str | None = None
        count = 0
        while True:
            page = self.get(path, cursor=cursor, **params)
            for item in page["items"]:
                yield item
                count += 1
                if at_most is not None and count >= at_most:
                    return
            cursor = page.get("next_cursor")
            if not cursor:
                return

    @contextmanager
    def stream(
        self,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        read_seconds: float = _READ_SECONDS,
        **params: Any,
    ) -> Iterator[httpx.Response]:
        """GET a response that is read while it arrives.

        Raises:
            ClientError: The API refused.
            NotRunningError: Nothing answers, or the connection was lost.
        """
        try:
            with self._http.stream(
                "GET",
                path,
                params=_given(params),
                headers=headers,
                timeout=httpx.Timeout(read_seconds, connect=CONNECT_SECONDS),
            ) as response:
                if response.is_error:
                    response.read()
                    raise problem(response)
                yield response
        except httpx.TransportError as error:
            raise self.translate(error) from error

    def events(
        self, path: str, *, read_seconds: float = _READ_SECONDS, heartbeats: bool = False, **params: Any
    ) -> Iterator[tuple[str, Any]]:
        """Follow server-sent events, and yield each one's name and its JSON.

        Args:
            path: The path of the event stream.
            read_seconds: How long the connection may be silent.
            heartbeats: Whether to yield heartbeats as well, as events with an empty name.
            params: The query.
        """
        headers = {"Accept": "text/event-stream"}
        with self.stream(path, headers=headers, read_seconds=read_seconds, **params) as response:
            yield from (found for found in _sse(response.iter_lines()) if found[0] or heartbeats)

    def read(self, kind: type[_T], document: Any) -> _T:
        """Parse a document as ``kind``.

        Raises:
            ClientError: The server uses another version of the API.
        """
        try:
            return kind.model_validate(document)
        except ValidationError as error:
            raise ClientError(
                f"{self.url} sent a response that this version of tritonctl cannot read: {invalid_field(error)}",
                code="bad-answer",
                status=0,
            ) from error

    def _json(self, response: httpx.Response) -> Any:
        if response.status_code == httpx.codes.NO_CONTENT or not response.content:
            return None
        try:
            return response.json()
        except json.JSONDecodeError as error:
            raise ClientError(
                f"{self.url} sent a response that is not JSON and is probably not a control plane; check --url",
                code="bad-answer",
                status=response.status_code,
            ) from error


def segment(text: str) -> str:
    """Quote one segment of a path."""
    return quote(text, safe="@:~")


def problem(response: httpx.Response) -> ClientError:
    """Convert an error response, with or without problem details, into an exception."""
    try:
        document = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        document = {}
    if not isinstance(document, dict):
        document = {}
    message = document.get("detail") or document.get("title")
    if not isinstance(message, str):
        message = f"{response.request.url} answered {response.status_code} {response.reason_phrase}"
    message = message.removeprefix("body.")  # the position in a request that the user did not write
    details = document.get("details")
    code = str(document.get("code", ""))
    error = named(ClientError, code)(message, code=code, status=response.status_code)
    error.details = details if isinstance(details, dict) else {}
    return error


def _sse(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """Parse the event stream format (https://html.spec.whatwg.org/multipage/server-sent-events.html).

    A comment, which servers send as a heartbeat, is an event without a name.
    """
    name, data = "message", []
    for line in lines:
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif line.startswith(":"):
            yield "", None
        elif not line and data:
            yield name, json.loads("\n".join(data))
            name, data = "message", []


def _retry_after(response: httpx.Response) -> float:
    """Return how many seconds the API asks the client to wait, limited to a time that a user accepts."""
    try:
        return min(float(response.headers.get("retry-after", "1")), _RETRY_AFTER_MAX_SECONDS)
    except ValueError:
        return 1.0


def _given(params: dict[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (params or {}).items() if value is not None}


def whoami() -> str:
    """Return the current user as user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def _header(text: str) -> str:
    """Remove characters that a header must not contain."""
    return text.encode("ascii", "replace").decode().replace("\n", " ").replace("\r", " ")


def is_loopback(url: str) -> bool:
    """Return whether a URL refers to this machine."""
    host = httpx.URL(url).host if "://" in url else url.partition(":")[0]
    return host in {"localhost", "127.0.0.1", "::1"}
