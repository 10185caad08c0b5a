"""The control plane is killed during work of many steps other than a deploy, and recovers after a restart."""

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec
from controlplane.domain.states import Phase
from controlplane.errors import NotFoundError
from controlplane.reconciler.controller import Reconciler
from controlplane.settings import StoreSettings
from controlplane.triton.client import TritonClient
from controlplane.triton.embedded.server import EmbeddedTriton
from tests.faults.planes import Plane, client
from tests.reconciler.conftest import answer, open_registry, settings
from tests.reconciler.fleet_child import server_of
from tests.support.models import publish_affine
from tests.support.triton import running_triton

pytestmark = [pytest.mark.triton, pytest.mark.long]

MIB = 1 << 20
WIDE, ROWS = 1 << 18, 40
"""A row of 1 MiB, and so many of them in one request: Triton keeps the memory."""


class Fleet:
    """Three real servers in two zones that outlive the control planes, and one store."""

    def __init__(self, folder: Path, servers: dict[str, EmbeddedTriton]) -> None:
        self.folder = folder
        self.registry = open_registry(folder)
        self.servers = servers

    def documents(self) -> list[dict[str, str]]:
        return [
            {"name": name, "grpc_url": one.grpc_url, "repository": str(one.repository), "zone": name[0]}
            for name, one in self.servers.items()
        ]

    def want(self, model: str, **selector: str) -> int:
        """Commit a deployment with two replicas on servers with these labels; return the revision."""
        try:
            before = self.registry.deployments.get(model, fresh=True)
            version = before.spec.version
        except NotFoundError:
            before, version = None, publish_affine(self.registry, model, self.folder, scale=2.0)
        wanted = DeploymentSettings(min_replicas=2, node_selector=selector)
        spec = DeploymentSpec(model=model, reference=f"{model}:{version}", version=version, settings=wanted)
        return self.registry.deployments.put(spec, after=before, actor="test", reason="").number

    async def loaded(self, model: str) -> set[str]:
        """Return where the model or its candidate is loaded, as the servers report it."""
        found = set()
        for name, server in self.servers.items():
            async with contextlib.AsyncExitStack() as stack:
                one = TritonClient(name, server.grpc_url)
                stack.push_async_callback(one.close)
                index = await one.index()
                found |= {name for entry in index if entry.model.startswith(model) and entry.state == "READY"}
        return found

    def left(self, model: str) -> list[Path]:
        """Return half-staged files in the model repositories; files of an unloaded replica may stay for a reload."""
        return [
            path
            for server in self.servers.values()
            for pattern in (f"{model}~*", f"{model}/.incomplete*")
            for path in server.repository.glob(pattern)
        ]

    def gone(self, model: str) -> bool:
        """Return whether no server has files of the model."""
        return not any(list(server.repository.glob(f"{model}*")) for server in self.servers.values())

    @contextlib.asynccontextmanager
    async def reconciler(self) -> Any:
        several = [server_of(document) for document in self.documents()]
        one = Reconciler(self.registry, several, settings())
        await one.start()
        try:
            yield one
        finally:
            await one.stop()
            for server in several:
                await server.client.close()

    async def killed(self, model: str, how: str, step: int) -> str:
        """Let a control plane defragment and die during it; return its output."""
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.reconciler.fleet_child", str(self.folder), json.dumps(self.documents()), model,
            how, str(step), stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(child.communicate(), 120)
        assert child.returncode == -signal.SIGKILL, output
        return output.decode()


async def until(condition: Callable[[], Any], what: str, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while True:
        held = condition()
        if asyncio.iscoroutine(held):
            held = await held
        if held:
            return
        assert time.monotonic() < end, f"not reached: {what}"
        await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(running_triton(folder / name)).server for name in ("a1", "a2", "b1")}
        yield Fleet(folder, servers)


# Stage, load, prove on the new server; unload from the old one.
STEPS = [
    pytest.param("kill-during", 2, "Load", id="during the load on the target"),
    pytest.param("kill-before", 3, "Prove", id="before the proof on the target"),
    pytest.param("kill-before", 4, "Unload", id="before the unload on the source"),
    pytest.param("kill-during", 4, "Unload", id="during the unload on the source"),
]


@pytest.mark.parametrize(("how", "step", "action"), STEPS)
async def test_kill_during_defragmentation_loses_no_replica_and_leaves_none(
    fleet: Fleet, how: str, step: int, action: str
) -> None:
    model = f"pair-{how}-{step}"
    revision = fleet.want(model, zone="a")
    async with fleet.reconciler() as before:
        status = await before.wait_settled(model, revision, 120)
        assert status.phase is Phase.READY, status
        revision = fleet.want(model)
        before.wake(model)
        assert (await before.wait_settled(model, revision, 120)).phase is Phase.READY
        assert await fleet.loaded(model) == {"a1", "a2"}, "no replica moves without a request"
    said = await fleet.killed(model, how, step)
    assert "'b1')]" in said, "it should move one replica"
    assert said.splitlines()[-1] == f"begin {step} {action}", "it should die at this step"

    async with fleet.reconciler() as after:

        async def whole() -> bool:
            status = after.status(model)
            ready = status is not None and status.phase is Phase.READY
            places = await fleet.loaded(model)
            return ready and len(places) == 2 and not fleet.left(model)

        await until(whole, f"exactly two replicas; {said}")
        for name in await fleet.loaded(model):
            one = TritonClient(name, fleet.servers[name].grpc_url)
            assert (await answer(one, model))[0] == 2.0
            await one.close()
        # An operator started the defragmentation and starts it again; then it completes.
        after.defragment(dry_run=False, limit=10)
        await until(
            lambda: after.defragment(dry_run=True, limit=10).moves == (), f"the defragmentation is complete; {said}"
        )

        async def spread() -> bool:
            return "b1" in await fleet.loaded(model) and await whole()

        await until(spread, f"the replicas are in different zones; {said}")
        head = fleet.registry.deployments.get(model, fresh=True)
        fleet.registry.deployments.put(head.spec.with_changes(deleted=True), after=head, actor="test", reason="")
        after.wake(model)
        await until(lambda: fleet.gone(model), f"the model is unloaded; {said}")


class Leaky:
    """`tritonctl up` with a server that keeps the memory of large tensors, and requests to it."""

    def __init__(self, folder: Path) -> None:
        store = StoreSettings(url=(folder / "store").as_uri())
        changes = {
            "MEMORY__LEAK_RESTART_THRESHOLD_BYTES": str(120 * MIB),
            "MEMORY__LEAK_CONFIRM_SECONDS": "0.5",
            "MEMORY__LEAK_DRAIN_SECONDS": "60",
            "MEMORY__POLL_INTERVAL_SECONDS": "0.3",
            "RECONCILER__PROBE_INTERVAL_SECONDS": "60",
            "TRITON__REQUEST_TIMEOUT_SECONDS": "10",
            "TRITON__LOAD_TIMEOUT_SECONDS": "60",
        }
        self.plane = Plane(folder / "plane", store, changes=changes)
        registry = open_registry(folder)
        publish_affine(registry, "wide", folder, scale=5.0, width=WIDE)
        publish_affine(registry, "small", folder, scale=2.0)

    def call(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        with client(self.plane.url, "test") as http:
            response = http.request(method, path, json=body or None)
            assert response.is_success, response.text
            found: dict[str, Any] = response.json() if response.content else {}
            return found

    def deploy(self) -> None:
        for model, options in (("wide", {"max_batch_size": 64}), ("small", {})):
            asked = self.call("PUT", f"/v1/deployments/{model}", reference=f"{model}:1", settings=options)
            with client(self.plane.url, "test", 150) as http:
                http.get(f"/v1/operations/{asked['operation_id']}", params={"wait": 30})

    def ready(self) -> bool:
        items = self.call("GET", "/v1/deployments")["items"]
        return [one["status"]["phase"] for one in items if one["status"]] == ["Ready", "Ready"]

    def leak_state(self) -> str:
        return str(self.call("GET", "/v1/memory")["items"][0]["leak"]["state"])

    def events(self) -> list[str]:
        return [one["reason"] for one in self.call("GET", "/v1/events?limit=1000")["items"]]

    async def infer(self, model: str, rows: int = 1) -> float:
        one = TritonClient("test", self.plane.triton_urls()[0])
        try:
            width = WIDE if model == "wide" else 4
            outputs, _ = await one.infer(model, {"x": np.ones((rows, width), np.float32)}, timeout=60)
        finally:
            await one.close()
        return float(outputs["y"][0, 0])


@pytest.mark.parametrize("moment", ["draining", "restarting"])
async def test_kill_during_drain_or_restart_of_leaking_server_recovers(tmp_path: Path, moment: str) -> None:
    here = Leaky(tmp_path)
    with contextlib.ExitStack() as stack:
        stack.callback(here.plane.stop)
        await asyncio.to_thread(here.plane.start)
        await asyncio.to_thread(here.deploy)
        await until(here.ready, "both answer", 120)
        lease = here.call("POST", "/v1/deployments/small/holds", ttl_seconds=300)
        server = here.plane.triton_pid()
        assert await here.infer("wide", ROWS) == 5.0
        await until(lambda: here.leak_state() == "draining", "it is drained", 60)
        if moment == "restarting":
            here.call("DELETE", f"/v1/deployments/small/holds/{lease['id']}")
            await until(lambda: "ServerRestarting" in here.events(), "it is restarted", 60)
        here.plane.kill()
        await until(lambda: not psutil.pid_exists(server), "its server ended with it", 60)

        await asyncio.to_thread(here.plane.start)
        await until(here.ready, "both answer again", 120)
        assert [await here.infer(model) for model in ("wide", "small")] == [5.0, 2.0]
        assert len(here.plane.backend_pids("wide")) == len(here.plane.backend_pids("small")) == 1, (
            "no model is loaded twice"
        )
        assert here.leak_state() == "watching", "a restarted server reports no leak"
        assert "MemoryLeak" not in here.events()
        held = [one["id"] for one in here.call("GET", "/v1/deployments/small/holds")["items"]]
        assert held == ([lease["id"]] if moment == "draining" else []), "the hold still exists"
        # The server is still watched: the same leak causes a restart again.
        assert await here.infer("wide", ROWS) == 5.0
        await until(lambda: "MemoryLeak" in here.events(), "it is drained again", 60)
