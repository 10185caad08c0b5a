"""Several real Triton servers: packing, spreading, one server killed, instances that follow the queue."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec
from controlplane.domain.states import DeploymentStatus, Phase
from controlplane.errors import InferenceError, NotFoundError
from controlplane.gpu.budgets import BudgetRules
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.deployments import DeploymentRevision
from controlplane.registry.registry import Registry
from controlplane.servers.server import ManagedServer
from controlplane.settings import MemorySettings, PlacementSettings, TritonSettings
from controlplane.triton.client import TritonClient, TritonTimeouts
from controlplane.triton.embedded.server import EmbeddedTriton
from controlplane.triton.metrics_scraper import MetricsScraper
from controlplane.triton.repository import ModelRepository
from tests.reconciler.conftest import answer
from tests.reconciler.conftest import settings as reconciler_settings
from tests.support.model_processes import processes_of
from tests.support.models import publish_affine
from tests.support.own_machine import OwnMachine

pytestmark = [pytest.mark.triton, pytest.mark.long]
MIB = 1 << 20


@dataclass
class Fleet:
    """Servers, a reconciler for which they are external, and the helpers that tests need."""

    registry: Registry
    servers: dict[str, EmbeddedTriton]
    clients: dict[str, TritonClient]
    reconciler: Reconciler
    work: Path
    managed: list[ManagedServer]

    def put(self, model: str, scale: float, *, resident_mib: int = 0, **settings: Any) -> int:
        """Publish a version if there is none yet, commit a deployment of it and return the revision."""
        deployments = self.registry.deployments
        try:
            before = deployments.get(model, fresh=True, deleted=True)
            version = before.spec.version
        except NotFoundError:
            before = None
            version = publish_affine(self.registry, model, self.work, scale=scale, resident_mib=resident_mib)
        wanted = DeploymentSettings.model_validate(settings)
        spec = DeploymentSpec(model=model, reference=f"{model}:{version}", version=version, settings=wanted)
        revision = deployments.put(spec, after=before, actor="test", reason="")
        self.reconciler.wake(model)
        return revision.number

    async def ready(self, model: str, scale: float, **settings: Any) -> DeploymentStatus:
        revision = self.put(model, scale, **settings)
        status = await self.reconciler.wait_settled(model, revision, 60)
        assert status.phase is Phase.READY, status
        return status

    async def settled(self, revision: DeploymentRevision) -> None:
        """Wait until a revision is Ready."""
        self.reconciler.wake(revision.spec.model)
        status = await self.reconciler.wait_settled(revision.spec.model, revision.number, 60)
        assert status.phase is Phase.READY, status

    async def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.05)

    def assignments(self, model: str, reconciler: Reconciler | None = None) -> list[str]:
        """Return where a model is placed, as `explain` reports it."""
        why = (reconciler or self.reconciler).why(model)
        return [assignment.server for assignment in why.placement.assignments] if why and why.placement else []

    async def loaded(self) -> dict[str, set[str]]:
        """Return the loaded models as the servers report them."""
        return {
            name: {entry.model for entry in await client.index() if entry.state == "READY"}
            for name, client in self.clients.items()
            if self.servers[name].pid is not None
        }

    def events(self, reason: str) -> list[str]:
        return [f"{e.subject} {e.message}" for e in self.reconciler.events() if e.reason == reason]

    async def kill(self, name: str) -> None:
        """Kill a server and all its processes permanently."""
        for pid in self.servers[name].processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self.servers[name].stop()


def managed(name: str, embedded: EmbeddedTriton, client: TritonClient, budget: int) -> ManagedServer:
    return ManagedServer(
        name,
        client,
        ModelRepository(embedded.repository),
        page=MetricsScraper(embedded.metrics_url),
        devices=OwnMachine(embedded.processes),
        budgets=BudgetRules({"host": budget}),
        zone=name[0],
        labels={"name": name, "zone": name[0]},
    )


@contextlib.asynccontextmanager
async def fleet(
    registry: Registry,
    folder: Path,
    *names: str,
    budget: int = 1000 * MIB,
    joined: Sequence[str] | None = None,
    **placement: float,
) -> AsyncIterator[Fleet]:
    """Start servers and a reconciler; ``joined`` names those that it has at the start (default: all)."""
    async with contextlib.AsyncExitStack() as stack:
        servers = {name: EmbeddedTriton(folder / name / "models", folder / name, TritonSettings()) for name in names}
        for server in servers.values():
            stack.push_async_callback(server.stop)
        await asyncio.gather(*(server.start() for server in servers.values()))
        clients = {}
        for name, server in servers.items():
            clients[name] = TritonClient(name, server.grpc_url, timeouts=TritonTimeouts(load_seconds=60))
            stack.push_async_callback(clients[name].close)
        several = [managed(name, servers[name], clients[name], budget) for name in joined or names]
        reconciler = reconciler_of(registry, several, **placement)
        await reconciler.start()
        stack.push_async_callback(reconciler.stop)
        yield Fleet(registry, servers, clients, reconciler, folder, several)


def reconciler_of(registry: Registry, servers: list[ManagedServer], **placement: float) -> Reconciler:
    memory = MemorySettings(minimum_residence_seconds=0.5, poll_interval_seconds=0.3)
    patience = PlacementSettings(**{"server_down_grace_seconds": 1.0, **placement})
    return Reconciler(registry, servers, reconciler_settings(), memory=memory, placement=patience)


async def test_models_are_packed_spread_and_moved_from_a_killed_server(registry: Registry, tmp_path: Path) -> None:
    # A model needs more than the unaccounted memory that a server may have, so that it is clear which gap is
    # smaller; a server has room for both and for the temporary memory of a load.
    async with fleet(registry, tmp_path, "one", "two", budget=1600 * MIB) as here:
        for number in (2, 3):
            await here.ready(f"small{number}", number, resident_mib=200)
        status = await here.ready("pair", 5, min_replicas=2)
        assert {server.server for server in status.servers} == {"one", "two"}
        (home,) = here.assignments("small2")
        assert here.assignments("small3") == [home], here.events(
            "Assigned"
        )  # it fits beside the first, so the large gap stays
        other = "two" if home == "one" else "one"
        assert await here.loaded() == {home: {"small2", "small3", "pair"}, other: {"pair"}}

        why = here.reconciler.why("small2")
        assert why is not None
        said = {one.server: (one.model.state, one.model.why) for one in why.servers}
        assert said[home][0] == "loaded"
        assert said[other] == ("assigned-elsewhere", f"placed on {home}")
        small = here.reconciler.status("small2")
        assert small is not None
        assert [server.server for server in small.servers] == [home], "only assigned servers count"

        async with watching(here) as follower:
            await here.until(
                lambda: all(here.assignments(m, follower) == here.assignments(m) for m in ("small2", "small3"))
            )
            await here.until(lambda: sorted(here.assignments("pair", follower)) == ["one", "two"])

            await here.kill(home)
            for model, scale in (("small2", 2.0), ("small3", 3.0), ("pair", 5.0)):
                await here.until(lambda model=model: here.assignments(model) == [other] and is_ready(here, model))
                assert (await answer(here.clients[other], model))[0] == scale
            await here.until(
                lambda: all(here.assignments(m, follower) == [other] for m in ("small2", "small3", "pair"))
            )
        why = here.reconciler.why("pair")
        assert why is not None
        assert why.placement is not None
        assert why.placement.unplaced == "2 replicas need different servers, and only 1 can run it"


@contextlib.asynccontextmanager
async def watching(here: Fleet) -> AsyncIterator[Reconciler]:
    """Start a standby on the same store and servers."""
    clients = {
        name: TritonClient(name, server.grpc_url, timeouts=TritonTimeouts(load_seconds=60))
        for name, server in here.servers.items()
    }
    servers = [managed(name, server, clients[name], 1000 * MIB) for name, server in here.servers.items()]
    follower = reconciler_of(here.registry, servers)
    await follower.start()
    try:
        assert not follower.leading
        yield follower
    finally:
        await follower.stop()
        for client in clients.values():
            await client.close()


async def test_replica_keeps_its_processes_while_another_is_unloaded(registry: Registry, tmp_path: Path) -> None:
    async with fleet(registry, tmp_path, "one", "two", budget=4000 * MIB) as here:
        await here.ready("moves", 2, bake_seconds=600, min_replicas=2)
        before = {name: processes_of(server, "moves", 1) for name, server in here.servers.items()}
        assert all(before.values())
        deployments = registry.deployments
        publish_affine(registry, "moves", tmp_path, scale=3)
        first = deployments.get("moves", fresh=True)
        newer = first.spec.with_changes(reference="moves:2", version=2)
        await here.settled(deployments.put(newer, after=first, actor="test", reason=""))
        assert {name: processes_of(server, "moves", 1) for name, server in here.servers.items()} == before

        await here.ready("moves", 2, bake_seconds=600, min_replicas=1, node_selector={"name": "two"})
        await here.until(lambda: any("unloaded from one" in message for message in here.events("Unloaded")))
        assert processes_of(here.servers["two"], "moves", 1) == before["two"]
        second = deployments.get("moves", fresh=True)
        older = second.spec.with_changes(reference="moves:1", version=1)
        await here.settled(deployments.put(older, after=second, actor="test", reason="rollback"))
        assert (await answer(here.clients["two"], "moves"))[0] == 2.0
        assert processes_of(here.servers["two"], "moves", 1) == before["two"]


def is_ready(here: Fleet, model: str) -> bool:
    status = here.reconciler.status(model)
    return status is not None and status.phase is Phase.READY


async def test_move_loads_target_before_unloading_source(registry: Registry, tmp_path: Path) -> None:
    async with fleet(registry, tmp_path, "one", "two") as here:
        await here.ready("moves", 2, node_selector={"name": "one"})
        assert await here.loaded() == {"one": {"moves"}, "two": set()}
        answers: list[float] = []
        stop = asyncio.Event()

        async def ask() -> None:
            """Send requests to one server, and to the other one when the first no longer has the model."""
            while not stop.is_set():
                for name in ready_on(here, "moves"):
                    try:
                        answers.append((await answer(here.clients[name], "moves"))[0])
                    except (InferenceError, NotFoundError):
                        continue  # it was unloaded between the lookup and the request
                    break
                else:
                    assert ready_on(here, "moves"), f"no server answers: {here.reconciler.status('moves')}"

        asking = asyncio.create_task(ask())
        here.put("moves", 2, node_selector={"name": "two"})
        await here.until(lambda: any("unloaded from one" in message for message in here.events("Unloaded")))
        stop.set()
        await asking
        assert set(answers) == {2.0}
        assert await here.loaded() == {"one": set(), "two": {"moves"}}
        order = [(e.reason, e.message) for e in here.reconciler.events() if e.subject == "moves"]
        proved = next(
            at for at, (reason, message) in enumerate(order) if reason == "ProofPassed" and "on two" in message
        )
        gone = next(at for at, (reason, message) in enumerate(order) if reason == "Unloaded" and "one" in message)
        assert proved < gone, order
        revision = here.put("moves", 2, node_selector={"name": "three"})
        status = await here.reconciler.wait_settled("moves", revision, 30)
        assert status.phase is Phase.DEGRADED
        assert status.message.endswith("; no server has the labels name=three")
        told = {one.type: (one.status, one.reason) for one in status.conditions}
        assert (told["Ready"], told["Degraded"]) == (("False", "FailedScheduling"), ("True", "FailedScheduling"))
        assert (await answer(here.clients["two"], "moves"))[0] == 2.0, "a serving replica is not moved"
        why = here.reconciler.why("moves")
        assert why is not None
        assert why.placement is not None
        assert why.placement.unplaced == "no server has the labels name=three"


async def test_replicas_scale_with_queue_and_down_when_idle(registry: Registry, tmp_path: Path) -> None:
    patience: dict[str, Any] = {"scale_up_seconds": 1.0, "scale_down_seconds": 2.0, "window_seconds": 0.5}
    async with fleet(registry, tmp_path, "one", "two", **patience) as here:
        await here.ready("busy", 2, max_replicas=2, target_queue_milliseconds=0.2)
        (home,) = here.assignments("busy")
        stop = asyncio.Event()
        config = await here.clients[home].model_config("busy")

        async def ask() -> None:
            while not stop.is_set():
                await here.clients[home].infer("busy", {"x": np.ones((1, 4), np.float32)}, config=config)

        clients = [asyncio.create_task(ask()) for _ in range(8)]
        try:
            await here.until(lambda: len(here.assignments("busy")) == 2)
            assert is_ready(here, "busy"), "a replica that is being loaded does not change the phase"
            other = "two" if home == "one" else "one"
            await here.until(lambda: len(ready_on(here, "busy")) == 2)
            assert (await answer(here.clients[other], "busy"))[0] == 2.0
        finally:
            stop.set()
            await asyncio.gather(*clients)
        why = here.reconciler.why("busy")
        assert why is not None
        assert why.placement is not None
        assert "more than the objective of 0.2 ms" in why.placement.replicas_why
        await here.until(lambda: len(here.assignments("busy")) == 1)
        await here.until(lambda: len(ready_on(here, "busy")) == 1)
        assert any("the request rate was low" in message for message in here.events("Scaled"))
        await here.until(lambda: is_ready(here, "busy"))


def ready_on(here: Fleet, model: str) -> list[str]:
    status = here.reconciler.status(model)
    return [one.server for one in status.servers if one.phase is Phase.READY] if status else []


async def test_defragmentation_separates_replicas_in_one_zone(registry: Registry, tmp_path: Path) -> None:
    async with fleet(registry, tmp_path, "a1", "a2", "b1") as here:
        await here.ready("pair", 2, min_replicas=2, node_selector={"zone": "a"})
        await here.ready("pair", 2, min_replicas=2)
        assert sorted(here.assignments("pair")) == ["a1", "a2"], "no replica moves without a request"

        planned = here.reconciler.defragment(dry_run=True, limit=10)
        assert [(move.model, move.to_server) for move in planned.moves] == [("pair", "b1")]
        assert planned.moves[0].why == "two replicas are in zone a"
        assert planned.seconds > 0
        assert sorted(here.assignments("pair")) == ["a1", "a2"], "a dry run changes nothing"

        done = here.reconciler.defragment(dry_run=False, limit=10)
        left = done.moves[0].from_server
        await here.until(lambda: any(f"unloaded from {left}" in message for message in here.events("Unloaded")))
        assert {name for name, models in (await here.loaded()).items() if models} == {"a1", "a2", "b1"} - {left}
        assert is_ready(here, "pair")
        assert here.reconciler.defragment(dry_run=True, limit=10).moves == ()
