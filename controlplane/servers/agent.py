"""The control plane's side of an agent: its model repository and its devices, over HTTP."""

import logging
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from controlplane import errors
from controlplane.domain.manifest import Manifest
from controlplane.errors import (
    AgentError,
    AgentUnavailableError,
    ControlPlaneError,
    DeviceError,
    InvalidInputError,
    StoreUnavailableError,
    UnauthenticatedError,
    code_of,
)
from controlplane.gpu.base import DeviceReading
from controlplane.servers.agent_protocol import (
    DEVICES,
    PROTOCOLS,
    Compare,
    Contents,
    Install,
    Lock,
    MakeReady,
    Problem,
    Protocols,
    Remove,
    Renew,
    Result,
    Waiting,
    encode_files,
)
from controlplane.settings import TritonServerSettings
from controlplane.triton.repository import Checkout

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 3.0
_READ_SECONDS = 30.0
_WAIT_SECONDS = 10.0
"""How long one request waits for work that goes on at the agent."""
_PATIENCE_SECONDS = 20.0
"""How long work that has begun goes on through an agent that does not answer, for example because it restarts."""
_PAUSE_SECONDS = 0.5
_LOCK_SECONDS = 30.0
"""How long an agent keeps a lock whose holder is silent."""

_T = TypeVar("_T", bound=BaseModel)


class AgentClient:
    """Requests to one agent. Thread-safe.

    Args:
        name: The server's name.
        url: The agent's URL.
        key: Its control key.
        tls: Certificates to trust and to send; None for plain HTTP.
    """

    def __init__(self, name: str, url: str, key: str, tls: ssl.SSLContext | None = None) -> None:
        self.name = name
        self.url = url.rstrip("/")
        self._protocol = 0
        self._closed = threading.Event()
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"},
            verify=tls if tls is not None else False,
            timeout=httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS),
            trust_env=False,  # a proxy for the internet must not see the key
        )

    @classmethod
    def of(cls, settings: TritonServerSettings) -> "AgentClient":
        """Return the client for a server's settings.

        Raises:
            InvalidInputError: A setting is missing, or a certificate cannot be used.
        """
        if settings.agent_key is None:
            raise InvalidInputError(
                f"the Triton server {settings.name!r} has an agent_url and no agent_key; set it to the agent's "
                "CONTROLPLANE_AGENT__KEY",
                server=settings.name,
            )
        if not settings.agent_url.startswith(("http://", "https://")):
            raise InvalidInputError(
                f"the agent_url {settings.agent_url!r} of the Triton server {settings.name!r} is not valid; use "
                "http://host:port or https://host:port",
                server=settings.name,
            )
        tls = _tls(settings) if settings.agent_url.startswith("https:") else None
        return cls(settings.name, settings.agent_url, settings.agent_key.get_secret_value(), tls)

    def close(self) -> None:
        """End requests that wait, and close the connections."""
        self._closed.set()
        self._http.close()

    def get(self, path: str) -> Any:
        """Return the document at a path."""
        return self._send("GET", path)

    def post(self, path: str, message: BaseModel, kind: type[_T]) -> _T:
        """Send a request and return its answer."""
        return self._parsed(self._send("POST", path, message), kind)

    def work(self, path: str, message: Waiting) -> Result:
        """Send a request for work until the work has ended; an answer that was lost is asked for again."""
        since: float | None = None
        while True:
            try:
                result = self.post(path, message, Result)
            except AgentUnavailableError:
                since = since or time.monotonic()
                if time.monotonic() - since > _PATIENCE_SECONDS or self._closed.wait(_PAUSE_SECONDS):
                    raise
            else:
                if result.done:
                    return result
                since = None
                if self._closed.is_set():
                    raise AgentUnavailableError(f"stopped waiting for the agent of {self.name}", server=self.name)

    def _send(self, method: str, path: str, message: BaseModel | None = None) -> Any:
        protocol = self._protocol or self._negotiate()
        content = None if message is None else message.model_dump_json().encode()
        answer = self._exchange(method, f"/v{protocol}/{path}", content)
        if answer.is_success:
            return self._json(answer)
        if answer.status_code == 404 and self._problem(answer).code in {"no-such-route", ""}:
            self._protocol = 0  # another release may answer at this address now
        raise self._error(answer)

    def _negotiate(self) -> int:
        answer = self._exchange("GET", "/protocols", None)
        if not answer.is_success:
            raise AgentError(f"{self.url} is not an agent of a Triton server ({answer.status_code})", server=self.name)
        spoken = self._parsed(self._json(answer), Protocols)
        common = set(spoken.protocols) & set(PROTOCOLS)
        if not common:
            raise AgentError(
                f"the agent of {self.name} (release {spoken.release or 'unknown'}) speaks the versions "
                f"{_list(spoken.protocols)} of the agent protocol, and this control plane {_list(PROTOCOLS)}; upgrade "
                "the older one",
                server=self.name,
            )
        self._protocol = max(common)
        return self._protocol

    def _exchange(self, method: str, path: str, content: bytes | None) -> httpx.Response:
        headers = {"Content-Type": "application/json"} if content is not None else {}
        try:
            try:
                return self._http.request(method, path, content=content, headers=headers)
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                # The agent, or a load balancer, closed a connection that was idle, or its answer was lost.
                return self._http.request(method, path, content=content, headers=headers)
        except httpx.TimeoutException as error:
            raise AgentUnavailableError(
                f"the agent of {self.name} did not answer in time ({self.url})", server=self.name
            ) from error
        except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: the client is closed
            reason = str(error) or type(error).__name__
            raise AgentUnavailableError(
                f"the agent of {self.name} cannot be reached at {self.url}: {reason}", server=self.name
            ) from error

    def _json(self, answer: httpx.Response) -> Any:
        try:
            return answer.json()
        except ValueError as error:
            raise AgentError(f"the agent of {self.name} sent an answer that is not JSON", server=self.name) from error

    def _parsed(self, document: Any, kind: type[_T]) -> _T:
        try:
            return kind.model_validate(document)
        except ValidationError as error:
            raise AgentError(
                f"the agent of {self.name} sent an answer that cannot be read", server=self.name
            ) from error

    def _problem(self, answer: httpx.Response) -> Problem:
        try:
            return Problem.model_validate_json(answer.content)
        except ValidationError:
            return Problem()

    def _error(self, answer: httpx.Response) -> ControlPlaneError:
        """Return the error that the agent raised; the same class as in this process."""
        problem = self._problem(answer)
        message = f"agent of {self.name}: {problem.detail or f'status {answer.status_code}'}"
        kind = _ERRORS.get(problem.code)
        if kind is UnauthenticatedError:
            return AgentError(
                f"the agent of {self.name} does not accept the key; set agent_key to its CONTROLPLANE_AGENT__KEY",
                server=self.name,
            )
        if kind is None:
            return AgentError(message, server=self.name)
        if kind is StoreUnavailableError:
            message = f"{message} (the agent's own connection to the store)"
        return kind(message, **{**problem.details, "server": self.name})


class AgentRepository:
    """A server's model repository on an agent's disk; implements `ServerRepository`.

    While the agent is unreachable, `staged` and `space` return what it reported last, because the server itself may be
    fine: a restart of the agent must not move its models.
    """

    def __init__(self, client: AgentClient) -> None:
        self._client = client
        self._contents: Contents | None = None
        self._problem = ""

    @property
    def root(self) -> Path:
        """The folder on the agent's machine, for display."""
        return Path(self._contents.root) if self._contents else Path()

    def install(
        self,
        triton_name: str,
        version: int,
        manifest: Manifest,
        config: Mapping[str, Any] | None,
        warmup: Mapping[str, bytes],
        checkout: Checkout,  # noqa: ARG002 - the agent fetches the blobs itself
        fetched: Callable[[], None],
    ) -> dict[str, float]:
        """See `ServerRepository.install`."""
        fetched()
        message = Install(
            name=triton_name,
            version=version,
            manifest=manifest,
            config=None if config is None else dict(config),
            warmup=encode_files(warmup),
            wait_seconds=_WAIT_SECONDS,
        )
        return self._client.work("install", message).seconds

    def make_ready(
        self,
        triton_name: str,
        versions: Mapping[int, Manifest],
        shared: Manifest | None,
        config: Mapping[str, Any] | None,
        warmup: Callable[[], Mapping[str, bytes]],
        checkout: Checkout,  # noqa: ARG002 - the agent fetches the blobs itself
    ) -> list[str]:
        """See `ServerRepository.make_ready`."""
        message = MakeReady(
            name=triton_name,
            versions=dict(versions),
            shared=shared,
            config=None if config is None else dict(config),
            wait_seconds=_WAIT_SECONDS,
        )
        result = self._client.work("make-ready", message)
        if result.needs_warmup:
            repaired = result.texts
            result = self._client.work("make-ready", message.model_copy(update={"warmup": encode_files(warmup())}))
            return [*repaired, *result.texts]
        return list(result.texts)

    def differences(self, triton_name: str, version: int, manifest: Manifest) -> list[str] | None:
        """See `ServerRepository.differences`."""
        message = Compare(name=triton_name, version=version, manifest=manifest)
        result = self._client.post("compare", message, Result)
        return list(result.texts) if result.staged else None

    def renew(self, triton_name: str, versions: Iterable[int]) -> None:
        """See `ServerRepository.renew`."""
        self._client.post("renew", Renew(name=triton_name, versions=tuple(versions)), Result)

    def remove_version(self, triton_name: str, version: int) -> bool:
        """See `ServerRepository.remove_version`."""
        return self._client.post("remove", Remove(name=triton_name, version=version), Result).removed

    def remove_model(self, triton_name: str) -> bool:
        """See `ServerRepository.remove_model`."""
        return self._client.post("remove", Remove(name=triton_name), Result).removed

    def staged(self) -> dict[str, set[int]]:
        """See `ServerRepository.staged`."""
        try:
            self._contents = Contents.model_validate(self._client.get("contents"))
        except AgentUnavailableError as error:
            if self._contents is None:
                raise
            self._report(error.message)
        else:
            self._report("")
        return {name: set(versions) for name, versions in self._contents.staged.items()}

    def space(self) -> tuple[int, int] | None:
        """Return the space of the latest `staged`; see `ServerRepository.space`."""
        seen = self._contents
        if seen is None or seen.free_bytes is None or seen.total_bytes is None:
            return None
        return seen.free_bytes, seen.total_bytes

    def problem(self) -> str:
        """See `ServerRepository.problem`."""
        return self._problem

    def lock(self, name: str) -> "AgentLock":
        """See `ServerRepository.lock`."""
        return AgentLock(self._client, name)

    def clean(self) -> None:
        """Do nothing: the agent removes the leftovers of a crash when it starts."""

    def _report(self, problem: str) -> None:
        """Log once that the agent went away, and once that it is back."""
        if bool(problem) != bool(self._problem):
            if problem:
                logger.warning("%s; its server is used as it is, and nothing is staged there", problem)
            else:
                logger.info("the agent of %s answers again", self._client.name)
        self._problem = problem


class AgentLock:
    """A lock that an agent keeps for its holder, who renews it; implements `TryLock`."""

    def __init__(self, client: AgentClient, name: str) -> None:
        self._client = client
        self._name = name
        self._owner = uuid.uuid4().hex
        self._released = threading.Event()
        self._guard = threading.Lock()

    def try_acquire(self) -> bool:
        """Take the lock if it is free, and renew it from then on; return whether it was taken (AgentError)."""
        if not self._request(_LOCK_SECONDS):
            return False
        threading.Thread(target=self._renew, name=f"lock {self._name}", daemon=True).start()
        return True

    def release(self) -> None:
        """Release the lock; if the agent cannot be reached, it becomes free soon."""
        with self._guard, suppress(AgentError):
            self._released.set()
            self._request(0)

    def _renew(self) -> None:
        while not self._released.wait(_LOCK_SECONDS / 3):
            with self._guard, suppress(AgentError):
                if not self._released.is_set():
                    self._request(_LOCK_SECONDS)

    def _request(self, seconds: float) -> bool:
        return self._client.post("lock", Lock(name=self._name, owner=self._owner, seconds=seconds), Result).granted


class AgentDevices:
    """The devices of an agent's machine; implements `DeviceSource`."""

    def __init__(self, client: AgentClient) -> None:
        self._client = client

    def read(self) -> tuple[DeviceReading, ...]:
        """Read the devices (DeviceError)."""
        try:
            return DEVICES.validate_python(self._client.get("devices"))
        except (AgentError, ValidationError) as error:
            raise DeviceError(f"the agent of {self._client.name} reports no devices: {error}") from error

    def close(self) -> None:
        """Close the connections to the agent."""
        self._client.close()


def _tls(settings: TritonServerSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.agent_ca_file)
        if settings.agent_client_cert is not None:
            context.load_cert_chain(settings.agent_client_cert)
    except (OSError, ssl.SSLError) as error:
        files = " or ".join(str(one) for one in (settings.agent_ca_file, settings.agent_client_cert) if one)
        raise InvalidInputError(
            f"{files} of the Triton server {settings.name!r} is not usable for TLS: "
            f"{getattr(error, 'strerror', None) or type(error).__name__}",
            server=settings.name,
        ) from error
    return context


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def _by_code() -> dict[str, type[ControlPlaneError]]:
    found: dict[str, type[ControlPlaneError]] = {}
    pending: list[type[ControlPlaneError]] = [ControlPlaneError]
    while pending:
        kind = pending.pop()
        pending.extend(below for below in kind.__subclasses__() if below.__module__ == errors.__name__)
        found[code_of(kind)] = kind
    return found


_ERRORS = _by_code()
