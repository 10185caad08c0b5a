"""The agent's HTTP interface: FastAPI over the operations of its model repository."""

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from controlplane.agent.blobs import Blobs
from controlplane.agent.jobs import Jobs
from controlplane.agent.locks import Locks
from controlplane.api.problems import install as install_problems
from controlplane.domain.validation import invalid_field
from controlplane.errors import InvalidInputError, TooLargeError, UnauthenticatedError
from controlplane.gpu.base import DeviceSource
from controlplane.servers.agent_protocol import (
    MESSAGE_BYTES_MAX,
    PROTOCOLS,
    Compare,
    Contents,
    Install,
    Lock,
    MakeReady,
    Protocols,
    Remove,
    Renew,
    Result,
    decode_files,
    devices_document,
)
from controlplane.services.health import version
from controlplane.triton.repository import ModelRepository

logger = logging.getLogger(__name__)

_T = TypeVar("_T", bound=BaseModel)


class _WarmupNeededError(Exception):
    """The files of the warm-up request are missing, and the request does not contain them."""


class AgentApi:
    """Answers the requests of the control plane.

    Args:
        name: The server's name.
        key: The control key; every request except for health and the protocol's versions needs it.
        repository: The model repository.
        blobs: The blobs.
        devices: The devices of this machine.
        live: Whether Triton is live.
    """

    def __init__(
        self,
        name: str,
        key: str,
        repository: ModelRepository,
        blobs: Blobs,
        devices: DeviceSource,
        live: Callable[[], Awaitable[bool]],
    ) -> None:
        self._name = name
        self._key = key.encode()
        self._repository = repository
        self._blobs = blobs
        self._devices = devices
        self._live = live
        self._locks = Locks()
        self.jobs = Jobs()

    def application(self) -> FastAPI:
        """Return the application."""
        app = FastAPI(title="tritonctl agent", openapi_url=None, docs_url=None, redoc_url=None)
        install_problems(app)

        @app.get("/healthz")
        async def healthz() -> dict[str, str]:
            return {"status": "alive"}

        @app.get("/readyz")
        async def readyz() -> Response:
            live = await self._live()
            return Response(json.dumps({"ready": live}), 200 if live else 503, media_type="application/json")

        @app.get("/protocols")
        async def protocols() -> dict[str, Any]:
            return Protocols(protocols=PROTOCOLS, release=version()).model_dump(mode="json")

        @app.get("/v1/contents")
        async def contents(request: Request) -> Response:
            self._admit(request)
            return _answer(await asyncio.to_thread(self._contents))

        @app.get("/v1/devices")
        async def devices(request: Request) -> list[dict[str, Any]]:
            self._admit(request)
            return devices_document(await asyncio.to_thread(self._devices.read))

        self._route(app, "install", Install, self._install)
        self._route(app, "make-ready", MakeReady, self._make_ready)
        self._route(app, "compare", Compare, self._compare)
        self._route(app, "renew", Renew, self._renew)
        self._route(app, "remove", Remove, self._remove)
        self._route(app, "lock", Lock, self._locks.handle)
        return app

    def _route(self, app: FastAPI, path: str, kind: type[_T], act: Callable[[_T], Result]) -> None:
        async def answer(request: Request) -> Response:
            self._admit(request)
            body = await _body(request)
            try:
                message = kind.model_validate_json(body)
            except ValidationError as error:
                raise InvalidInputError(invalid_field(error)) from error
            return _answer(await asyncio.to_thread(act, message))

        app.add_api_route(f"/v1/{path}", answer, methods=["POST"])

    def _admit(self, request: Request) -> None:
        """Raise UnauthenticatedError unless the request has the key."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key):
            raise UnauthenticatedError("the agent's control key is missing or wrong")

    def _contents(self) -> Contents:
        space = self._repository.space()
        staged = {name: tuple(sorted(versions)) for name, versions in self._repository.staged().items()}
        free, total = space or (None, None)
        return Contents(
            name=self._name, root=str(self._repository.root), staged=staged, free_bytes=free, total_bytes=total
        )

    def _install(self, message: Install) -> Result:
        def work() -> Result:
            seconds = self._repository.install(
                message.name,
                message.version,
                message.manifest,
                message.config,
                _files(message.warmup),
                self._blobs.checkout,
                lambda: None,
            )
            logger.info("staged %s:%d", message.name, message.version)
            return Result(seconds=seconds)

        return self.jobs.run("install", message.name, message, work)

    def _make_ready(self, message: MakeReady) -> Result:
        def warmup() -> dict[str, bytes]:
            if message.warmup is None:
                raise _WarmupNeededError
            return _files(message.warmup)

        def work() -> Result:
            ready, checkout = self._repository.make_ready, self._blobs.checkout
            repaired = tuple(ready(message.name, message.versions, message.shared, None, warmup, checkout))
            try:
                ready(message.name, {}, None, message.config, warmup, checkout)
            except _WarmupNeededError:
                return Result(needs_warmup=True, texts=repaired)
            return Result(texts=repaired)

        return self.jobs.run("make-ready", message.name, message, work)

    def _compare(self, message: Compare) -> Result:
        found = self._repository.differences(message.name, message.version, message.manifest)
        return Result(staged=found is not None, texts=tuple(found or ()))

    def _renew(self, message: Renew) -> Result:
        with self.jobs.exclusive(message.name):
            self._repository.renew(message.name, message.versions)
        return Result()

    def _remove(self, message: Remove) -> Result:
        with self.jobs.exclusive(message.name):
            if message.version is None:
                removed = self._repository.remove_model(message.name)
            else:
                removed = self._repository.remove_version(message.name, message.version)
        if removed:
            logger.info("removed %s%s", message.name, f":{message.version}" if message.version else "")
        return Result(removed=removed)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MESSAGE_BYTES_MAX:
            raise TooLargeError(f"a request to an agent has at most {MESSAGE_BYTES_MAX} bytes")
    return bytes(body)


def _files(files: dict[str, str]) -> dict[str, bytes]:
    try:
        decoded = decode_files(files)
    except ValueError as error:
        raise InvalidInputError("the warm-up files are not base64") from error
    for name, content in decoded.items():
        if not hashlib.sha256(content).hexdigest().startswith(name):
            raise InvalidInputError(f"the warm-up file {name!r} does not have the content of its name", name=name)
    return decoded


def _answer(message: BaseModel) -> Response:
    return Response(message.model_dump_json(), media_type="application/json")
