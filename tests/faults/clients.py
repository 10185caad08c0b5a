"""Clients that work continuously: they publish, move aliases, deploy, roll back and infer, and record the results."""

import itertools
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from tests.faults.planes import client
from tests.faults.record import Answer, Change, Published, Record
from tests.support.api import onnx_scale, sha256

WAIT_SECONDS = 240.0
"""Generous: on a busy machine a publish, which starts a process, may take a minute."""
_factors = itertools.count(2)
_ROW = [1.0, 1.0]

# A change that failed with one of these codes may have been applied.
UNSURE = frozenset({"commit-outcome-unknown", "internal-error", "operation-lost", "triton-timeout"})


class RefusedError(Exception):
    """A problem document or a failed operation, with its code and its cause."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class LostError(Exception):
    """A request without an answer."""


class Caller:
    """Calls the API and records violations: errors without a problem document, and missing answers without a cause.

    Args:
        urls: The control planes; requests rotate among them.
        actor: Its name.
        record: Receives the violations.
        seconds: Longest time to wait for one answer.
    """

    def __init__(self, urls: Sequence[str], actor: str, record: Record, seconds: float = 30) -> None:
        self._clients = [client(url, actor, seconds) for url in urls]
        self._next = itertools.count()
        self._record = record
        self._actor = actor

    def close(self) -> None:
        for one in self._clients:
            one.close()

    def call(self, method: str, path: str, *, on: int | None = None, **options: Any) -> dict[str, Any]:
        """Make a request.

        Args:
            method: HTTP method.
            path: Path.
            on: Which control plane; None uses the next one.
            options: For httpx.

        Raises:
            RefusedError: The answer is a problem document.
            LostError: There is no answer.
        """
        response = self._response(method, path, on, **options)
        if response.is_success:
            return response.json() if response.content else {}
        self._fail(f"{method} {path}", response)
        raise AssertionError

    def is_ready(self, on: int) -> bool:
        """Return whether a control plane reports that it is ready; a 503 is a valid answer here.

        Raises:
            LostError: There is no answer.
        """
        return bool(self._response("GET", "/readyz", on).json()["ready"])

    def _response(self, method: str, path: str, on: int | None, **options: Any) -> httpx.Response:
        number = next(self._next) if on is None else on
        began = time.monotonic()
        try:
            return self._clients[number % len(self._clients)].request(method, path, **options)
        except httpx.TransportError as error:
            if not self._record.is_excused("api", began, time.monotonic()):
                self._record.violated(f"{method} {path} got no answer from a running control plane: {error!r}")
            raise LostError(repr(error)) from error

    def _fail(self, what: str, response: httpx.Response) -> None:
        try:
            problem = response.json()
            code, detail = str(problem["code"]), str(problem["detail"])
        except (ValueError, KeyError, TypeError):
            code, detail = "", response.text[:200]
        if not code or not detail:
            self._record.violated(f"{what} failed without a cause: {response.status_code} {detail}")
        if code == "internal-error":
            self._record.violated(f"{what} failed unexpectedly: {detail}")
        self._record.refused(what, code, detail)
        raise RefusedError(code, detail)

    def operation(self, operation_id: str, seconds: float = WAIT_SECONDS, on: int | None = None) -> dict[str, Any]:
        """Wait for an operation and return it; record a failed one with its cause.

        Raises:
            RefusedError: It failed or cannot be read.
            LostError: There is no answer.
        """
        end = time.monotonic() + seconds
        while True:
            operation = self.call("GET", f"/v1/operations/{operation_id}", on=on, params={"wait": 5})
            if operation["state"] == "succeeded":
                return operation
            if operation["state"] in {"failed", "cancelled"}:
                error = operation.get("error") or {"code": operation["state"], "detail": "cancelled"}
                if not error["detail"]:
                    self._record.violated(f"operation {operation['kind']} failed without a cause")
                if error["code"] == "internal-error":
                    self._record.violated(f"operation {operation['kind']} failed unexpectedly: {error['detail']}")
                self._record.refused(f"operation {operation['kind']}", error["code"], error["detail"])
                raise RefusedError(error["code"], error["detail"])
            if time.monotonic() > end:
                raise LostError(f"operation {operation_id} is still {operation['state']}")


class Work:
    """Changes, each recorded with its result.

    Args:
        urls: The control planes.
        actor: Who.
        record: Receives the results.
        rng: Random number generator.
    """

    def __init__(self, urls: Sequence[str], actor: str, record: Record, rng: random.Random) -> None:
        self.caller = Caller(urls, actor, record)
        self._record = record
        self._rng = rng
        self._planes = len(urls)

    def publish(
        self, model: str, data: bytes | None = None, factor: float = 0.0, *, on: int | None = None, **fields: Any
    ) -> Published:
        """Publish a new version; an upload stays with one instance, as the API requires.

        Raises:
            RefusedError: It failed.
            LostError: The result is unknown.
        """
        if data is None:
            factor = float(next(_factors))
            data = onnx_scale(factor)
        digest = sha256(data)
        self._record.sent[digest] = factor
        on = self._rng.randrange(self._planes) if on is None else on
        file = {"path": "model.onnx", "size_bytes": len(data), "sha256": digest}
        upload = self.caller.call("POST", "/v1/uploads", on=on, json={"files": [file]})
        if upload["files"][0]["state"] == "missing":
            self.caller.call("PUT", f"/v1/uploads/{upload['id']}/blobs/{digest}", on=on, content=data)
        started = self.caller.call(
            "POST",
            f"/v1/models/{model}/versions",
            on=on,
            json={"upload_id": upload["id"], "sample_count": 1, **fields},
            headers={"Idempotency-Key": uuid.uuid4().hex},
        )
        result = self.caller.operation(started["id"], on=on)["result"]
        published = Published(model, int(result["version"]), digest, factor)
        self._record.published.append(published)
        return published

    def move(self, model: str, alias: str, version: int) -> None:
        """Move an alias."""
        changes = self._record.aliases.setdefault((model, alias), [])
        path = f"/v1/models/{model}/aliases/{alias}"
        self._change(changes, version, lambda: self.caller.call("PUT", path, json={"version": version}))

    def deploy(self, model: str, version: int, **settings: Any) -> dict[str, Any]:
        """Ask for a version."""
        body: dict[str, Any] = {"reference": f"{model}:{version}"}
        if settings:
            body["settings"] = settings
        changes = self._record.deployments.setdefault(model, [])
        return self._change(changes, version, lambda: self.caller.call("PUT", f"/v1/deployments/{model}", json=body))

    def move_to(self, model: str, version: int, *, on: int) -> dict[str, Any]:
        """Deploy a version through one control plane."""
        body = {"reference": f"{model}:{version}"}
        changes = self._record.deployments.setdefault(model, [])
        return self._change(
            changes, version, lambda: self.caller.call("PUT", f"/v1/deployments/{model}", on=on, json=body)
        )

    def roll_back(self, model: str) -> dict[str, Any]:
        """Roll back to the previous version."""
        changes = self._record.deployments.setdefault(model, [])
        return self._change(changes, None, lambda: self.caller.call("POST", f"/v1/deployments/{model}/rollback"))

    def settled(self, deployment: dict[str, Any], seconds: float = WAIT_SECONDS) -> dict[str, Any]:
        """Wait until a revision serves.

        Raises:
            RefusedError: It cannot become Ready, or a newer one replaced it.
        """
        return self.caller.operation(deployment["operation_id"], seconds)

    def _change(self, changes: list[Change], version: int | None, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        with self._record.in_order:
            try:
                answer = ask()
            except RefusedError as error:
                changes.append(Change(version, Answer.LOST if error.code in UNSURE else Answer.REFUSED))
                raise
            except LostError:
                changes.append(Change(version, Answer.LOST))
                raise
            wanted = answer["spec"]["version"] if version is None else version
            changes.append(Change(wanted, Answer.DONE, answer.get("revision")))
        return answer


class Asker:
    """Sends requests to models through Triton's own port and checks each answer.

    Args:
        http_url: Triton's HTTP service.
        record: Its published versions define the right answers.
    """

    def __init__(self, http_url: str, record: Record) -> None:
        self._http = httpx.Client(base_url=http_url, timeout=httpx.Timeout(10, connect=2))
        self._record = record

    def close(self) -> None:
        self._http.close()

    def ask(self, model: str) -> int | None:
        """Send a request; return the version that gave a right answer, or None."""
        began = time.monotonic()
        body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": _ROW}]}
        try:
            response = self._http.post(f"/v2/models/{model}/infer", json=body)
            document = response.json()
            version, data = int(document["model_version"]), document["outputs"][0]["data"]
        except (httpx.TransportError, ValueError, KeyError) as error:
            said = response.text[:200] if isinstance(error, KeyError) else repr(error)
            if not self._excused(model, began):
                self._record.violated(f"{model} answered before and no longer does: {said}")
            return None
        factors = {one.factor for one in self._record.published if (one.model, one.version) == (model, version)}
        known = factors or set(
            self._record.sent.values()
        )  # its publisher may not have received the acknowledgement yet
        if data[0] not in known:
            self._record.violated(f"{model}:{version} answers {data[0]}, not one of {sorted(known)[:5]}")
            return None
        self._record.answered()
        return version

    def _excused(self, model: str, began: float) -> bool:
        ended = time.monotonic()
        return self._record.is_excused("triton", began, ended) or self._record.is_excused(model, began, ended)


class Traffic:
    """Threads that do all of this until they are stopped.

    Args:
        urls: The control planes.
        http_url: Triton.
        record: Receives the results.
        steady: A deployed model that only serves.
        moving: A deployed model with at least two versions that is switched between them.
        pause: Approximate seconds between two changes of one client.

    Attributes:
        deployer: Lock that is held while the moving model is deployed; it gives exclusive use of that model.
    """

    def __init__(
        self, urls: Sequence[str], http_url: str, record: Record, *, steady: str, moving: str, pause: float, seed: int
    ) -> None:
        self._urls = urls
        self._http_url = http_url
        self._record = record
        self._steady, self._moving, self._pause = steady, moving, pause
        self._stop = threading.Event()
        self.deployer = threading.Lock()
        self._rngs = [random.Random(seed + number) for number in range(4)]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the clients for a block; at its end each finishes its current step."""
        self._stop.clear()
        threads = [
            threading.Thread(target=self._keep, args=(work, rng), name=work.__name__, daemon=True)
            for work, rng in zip((self._publish, self._move, self._deploy), self._rngs, strict=False)
        ]
        threads.append(threading.Thread(target=self._ask, name="ask", daemon=True))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(WAIT_SECONDS + 30)
                if thread.is_alive():
                    self._record.violated(f"the client {thread.name} does not end")

    def _keep(self, act: Callable[[Work], None], rng: random.Random) -> None:
        work = Work(self._urls, act.__name__.strip("_"), self._record, rng)
        try:
            while not self._stop.wait(rng.uniform(0.5, 1.5) * self._pause):
                try:
                    act(work)
                except (RefusedError, LostError):
                    continue  # recorded where it happened
        finally:
            work.caller.close()

    def _publish(self, work: Work) -> None:
        work.publish("stock")

    def _move(self, work: Work) -> None:
        versions = [one.version for one in self._record.published if one.model == self._steady]
        work.move(self._steady, "champion", self._rngs[1].choice(versions))

    def _deploy(self, work: Work) -> None:
        rng = self._rngs[2]
        with self.deployer:
            if rng.random() < 0.4:
                deployment = work.roll_back(self._moving)
            else:
                versions = [one.version for one in self._record.published if one.model == self._moving]
                deployment = work.deploy(self._moving, rng.choice(versions))
            if rng.random() < 0.7:  # else the next deploy supersedes it
                work.settled(deployment)

    def _ask(self) -> None:
        asker = Asker(self._http_url, self._record)
        try:
            while not self._stop.wait(0.03):
                asker.ask(self._steady)
                asker.ask(self._moving)
        finally:
            asker.close()
