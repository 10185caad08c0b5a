"""The system that faults are injected into: store, proxy, control planes, Triton, clients, and their record."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from controlplane.settings import StoreSettings
from tests.faults.clients import Asker, LostError, RefusedError, Traffic, Work
from tests.faults.invariants import Auditor, nothing_left_over
from tests.faults.planes import Plane, beside, client, running
from tests.faults.record import Record
from tests.support.faultproxy import FaultProxy, fault_proxy
from tests.support.s3server import S3Server
from tests.support.triton import RunningTriton

STEADY = "steady"
MOVING = "moving"
_REST_SECONDS = 240.0


@dataclass
class Stage:
    """The running parts of the system.

    Attributes:
        planes: The control planes; the first is watched.
        repository: The model repository that they write.
        http_url: Triton's HTTP service.
        grpc_url: Triton's gRPC service.
        record: Answers to clients.
        auditor: Reads the store directly.
        work: Sends a case's own changes.
        asker: Sends a case's own inference requests.
        traffic: The clients.
        proxy: Proxy before the S3 server; None if the store is a folder.
        lead_seconds: Seconds that clients work before a fault.
        rng: Random number generator.
        last_failure: Why the last change of a case failed.
    """

    planes: list[Plane]
    repository: Path
    http_url: str
    grpc_url: str
    record: Record
    auditor: Auditor
    work: Work
    asker: Asker
    traffic: Traffic
    proxy: FaultProxy | None = None
    triton: RunningTriton | None = None
    server: S3Server | None = None
    lead_seconds: float = 0.3
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    last_failure: str = ""

    @property
    def url(self) -> str:
        return self.planes[0].url

    @property
    def plane(self) -> Plane:
        return self.planes[0]

    def publishes(self, model: str = "stock") -> bool:
        """Return whether a publish succeeds now."""
        return self._tried(lambda: self.work.publish(model))

    def deploys(self, version: int | None = None) -> bool:
        """Return whether the moving model can switch to another version now."""
        versions = [one.version for one in self.record.published if one.model == MOVING]
        wanted = version or self.rng.choice(versions)
        return self._tried(lambda: self.work.settled(self.work.deploy(MOVING, wanted)))

    def removes(self, model: str) -> None:
        """Undeploy a model that a case deployed."""
        self.work.settled(self.work.caller.call("DELETE", f"/v1/deployments/{model}"))
        self.record.deployments.pop(model)

    @contextmanager
    def deployer_off(self) -> Iterator[None]:
        """Prevent the clients from deploying during a block."""
        with self.traffic.deployer:
            yield

    def deploys_alone(self) -> bool:
        """Return whether a deploy succeeds at the first attempt without a concurrent one."""
        with self.deployer_off():
            return self.deploys()

    def leads(self, plane: Plane) -> bool:
        """Return whether a control plane reports itself as leader in its newest leadership event."""
        try:
            with client(plane.url, "watcher", 5) as http:
                events = http.get("/v1/events", params={"limit": 1000}).json()["items"]
        except httpx.TransportError:
            return False
        said = [event["reason"] for event in events if event["subject"] == "reconciler"]
        return bool(said) and said[-1] == "LeadershipAcquired"

    def answers(self) -> bool:
        """Return whether both models give right answers through Triton."""
        return all(self.asker.ask(model) is not None for model in (STEADY, MOVING))

    def at_rest(self) -> list[str]:
        """Wait until the last requested state is reached and return the violations."""
        end = time.monotonic() + _REST_SECONDS
        problems = ["not checked yet"]
        while problems and time.monotonic() < end:
            problems = self._unsettled()
            if problems:
                time.sleep(0.1)
        return [*problems, *self.auditor.audit(self.record)]

    def _unsettled(self) -> list[str]:
        problems = []
        for model in (STEADY, MOVING):
            try:
                deployment = self.work.caller.call("GET", f"/v1/deployments/{model}", on=0)
            except (RefusedError, LostError) as error:
                return [f"the deployment of {model} cannot be read: {error}"]
            status, wanted = deployment["status"], deployment["spec"]["version"]
            if status is None or status["phase"] != "Ready" or status["revision"] != deployment["revision"]:
                problems.append(f"{model} is not Ready at the end: {status}")
            elif (answers := self.asker.ask(model)) != wanted:
                problems.append(f"{model} answers with {answers} at the end and not with {wanted}")
            elif (newest := self.auditor.wanted(model)) != wanted:
                problems.append(f"{model} wants {wanted} at the end, and the store has {newest}")
        return problems or nothing_left_over(self.repository)

    def _tried(self, act: Callable[[], Any]) -> bool:
        try:
            act()
        except (RefusedError, LostError) as error:
            self.last_failure = str(error)
            return False
        return True


@contextmanager
def stage_with_own_triton(
    server: S3Server | None,
    folder: Path,
    *,
    changes: Mapping[str, str] = {},
    pause: float = 1.0,
    seed: int = 1,
    store: StoreSettings | None = None,
    shared_memory_mib: int | None = None,
) -> Iterator[Stage]:
    """Start `tritonctl up`: one control plane with its embedded Triton, on S3 behind the proxy or on a folder.

    Args:
        server: The S3 server; None for a folder.
        folder: Folder of all local files.
        changes: More settings.
        pause: Seconds between two changes of a client.
        seed: Random seed.
        store: The folder of the store, without a server.
        shared_memory_mib: Size of its own ``/dev/shm``.
    """
    with ExitStack() as stack:
        proxy, direct, seen = _store(server, folder, stack, store)
        own = Plane(folder / "plane", seen, changes=changes, shared_memory_mib=shared_memory_mib)
        plane = stack.enter_context(running(own))
        yield _stage(stack, [plane], direct, plane.repository, plane.triton_urls(), folder, pause, seed, proxy, server)


@contextmanager
def stage_beside_triton(
    server: S3Server,
    triton: RunningTriton,
    folder: Path,
    *,
    replicas: int,
    changes: Mapping[str, str] = {},
    pause: float = 1.0,
    seed: int = 1,
) -> Iterator[Stage]:
    """Start `tritonctl serve` once or more on one store with a Triton that outlives them."""
    with ExitStack() as stack:
        proxy, direct, seen = _store(server, folder, stack, None)
        planes = [
            stack.enter_context(
                running(Plane(folder / f"plane{number}", seen, command="serve", changes=beside(triton) | dict(changes)))
            )
            for number in range(replicas)
        ]
        urls = (triton.server.grpc_url, triton.server.http_url)
        yield _stage(stack, planes, direct, triton.repository.root, urls, folder, pause, seed, proxy, server, triton)


def _store(
    server: S3Server | None, folder: Path, stack: ExitStack, store: StoreSettings | None
) -> tuple[FaultProxy | None, StoreSettings, StoreSettings]:
    if server is None:
        settings = store or StoreSettings(url=(folder / "store").as_uri())
        return None, settings, settings
    proxy = stack.enter_context(fault_proxy(server.endpoint_url))
    direct = server.settings(server.new_bucket())
    return proxy, direct, direct.model_copy(update={"endpoint_url": proxy.endpoint_url})


def _stage(
    stack: ExitStack,
    planes: list[Plane],
    store: StoreSettings,
    repository: Path,
    urls: tuple[str, str],
    folder: Path,
    pause: float,
    seed: int,
    proxy: FaultProxy | None,
    server: S3Server | None,
    triton: RunningTriton | None = None,
) -> Stage:
    record = Record()
    auditor = Auditor(store, folder)
    stack.callback(auditor.close)
    api = [plane.url for plane in planes]
    work = Work(api, "case", record, random.Random(seed))
    stack.callback(work.caller.close)
    asker = Asker(urls[1], record)
    stack.callback(asker.close)
    for model in (STEADY, MOVING):
        for _ in range(2):
            last = work.publish(model)
        work.settled(work.deploy(model, last.version))
        assert asker.ask(model) == last.version
    traffic = Traffic(api, urls[1], record, steady=STEADY, moving=MOVING, pause=pause, seed=seed)
    return Stage(
        planes, repository, urls[1], urls[0], record, auditor, work, asker, traffic, proxy, triton, server,
        rng=random.Random(seed),
    )  # fmt: skip


@contextmanager
def meanwhile(act: Callable[[], object]) -> Iterator[None]:
    """Run a function in a thread during a block."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(120)
