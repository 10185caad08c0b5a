"""The GPU within a server: what is sent to Triton, what the ledger counts, what the API shows.

The backends and Triton are real and run on the CPU; `tests.support.gpu_triton` describes the substitute for GPUs.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from controlplane.domain.deployment import DeploymentSettings, DeploymentSpec
from controlplane.domain.report import Verdict
from controlplane.domain.states import DeploymentStatus, Phase
from controlplane.errors import InferenceError, NotFoundError
from controlplane.gpu.budgets import BudgetRules
from controlplane.gpu.combined import CombinedSource
from controlplane.gpu.host import HostSource
from controlplane.memory.views import PlacementView, ServerMemory
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.registry import Registry
from controlplane.servers.server import ManagedServer
from controlplane.settings import MemorySettings, PlacementSettings, TritonSettings
from controlplane.triton.client import TritonClient, TritonTimeouts
from controlplane.triton.embedded.server import EmbeddedTriton
from controlplane.triton.metrics_scraper import MetricsScraper
from controlplane.triton.repository import ModelRepository
from tests.reconciler.conftest import answer, open_registry
from tests.reconciler.conftest import settings as reconciler_settings
from tests.support.gpu_triton import GpuTriton, ReadGpus, gpu_triton
from tests.support.models import publish_affine
from tests.support.nvml import GIB, Machine
from tests.support.nvml_reading import Reader

pytestmark = [pytest.mark.triton, pytest.mark.long]
MIB = 1 << 20
Start = Callable[..., contextlib.AbstractAsyncContextManager["Site"]]


@dataclass
class Site:
    """A control plane over one server with GPUs."""

    registry: Registry
    gpus: GpuTriton
    client: TritonClient
    reconciler: Reconciler
    work: Path

    def put(self, model: str, scale: float = 2.0, *, new: bool = False, **settings: Any) -> int:
        deployments = self.registry.deployments
        try:
            before = deployments.get(model, fresh=True, deleted=True)
        except NotFoundError:
            before = None
        version = before.spec.version if before is not None and not new else None
        if version is None:
            version = publish_affine(self.registry, model, self.work, scale=scale)
        wanted = DeploymentSettings.model_validate({"bake_seconds": 0, **settings})
        spec = DeploymentSpec(model=model, reference=f"{model}:{version}", version=version, settings=wanted)
        revision = deployments.put(spec, after=before, actor="test", reason="")
        self.reconciler.wake(model)
        return revision.number

    async def settled(self, model: str, scale: float = 2.0, **settings: Any) -> DeploymentStatus:
        return await self.reconciler.wait_settled(model, self.put(model, scale, **settings), 60)

    async def ready(self, model: str, scale: float = 2.0, **settings: Any) -> None:
        status = await self.settled(model, scale, **settings)
        assert status.phase is Phase.READY, status

    async def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.05)

    @property
    def memory(self) -> ServerMemory:
        (memory,) = self.reconciler.memory()
        return memory

    def resident(self) -> dict[str, int]:
        return {one.device: one.resident_bytes for one in self.memory.devices if one.device != "host"}

    def placement(self, model: str) -> PlacementView:
        why = self.reconciler.why(model)
        assert why is not None
        assert why.placement is not None
        return why.placement

    def devices(self, model: str) -> tuple[str, ...]:
        return tuple(device for assignment in self.placement(model).assignments for device in assignment.devices)

    def measured(self, model: str) -> tuple[int, str]:
        (known,) = [one for _, one in self.registry.footprints.of(model, 1)]
        return known.bytes, known.by

    def events(self, reason: str) -> list[str]:
        return [f"{e.subject}: {e.message}" for e in self.reconciler.events() if e.reason == reason]


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[EmbeddedTriton]:
    server = EmbeddedTriton(tmp_path / "models", tmp_path / "triton", TritonSettings())
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return open_registry(tmp_path)


@contextlib.asynccontextmanager
async def plane(
    registry: Registry, gpus: GpuTriton, url: str, work: Path, reader: Reader | None
) -> AsyncIterator[Site]:
    """Start a control plane over the server; without a reader it sees no GPU."""
    embedded = gpus.embedded
    client = TritonClient(
        "gpus", url, timeouts=TritonTimeouts(load_seconds=60), processes=embedded.processes_of,
        log_tail=embedded.log_tail,
    )  # fmt: skip
    server = ManagedServer(
        "gpus",
        client,
        ModelRepository(embedded.repository),
        embedded,
        page=MetricsScraper(embedded.metrics_url),
        devices=CombinedSource([HostSource(embedded.processes), *([ReadGpus(reader)] if reader else [])]),
        budgets=BudgetRules({"host": 8 * GIB, "gpu:0": 6 * GIB, "gpu:1": 6 * GIB}),
    )
    memory = MemorySettings(minimum_residence_seconds=0.5, poll_interval_seconds=0.3, load_queue_timeout_seconds=30)
    patience = PlacementSettings(server_down_grace_seconds=1.0)
    reconciler = Reconciler(registry, [server], reconciler_settings(), memory=memory, placement=patience)
    await reconciler.start()
    try:
        yield Site(registry, gpus, client, reconciler, work)
    finally:
        await reconciler.stop()
        await client.close()


@pytest.fixture
def start(
    embedded: EmbeddedTriton,
    machine: Machine,
    reader: Callable[..., Reader],
    registry: Registry,
    tmp_path: Path,
) -> Start:
    """Starts control planes over the one server."""

    @contextlib.asynccontextmanager
    async def begin(**options: Any) -> AsyncIterator[Site]:
        async with (
            gpu_triton(embedded, machine, **options) as gpus,
            plane(registry, gpus, gpus.url, tmp_path, reader()) as site,
        ):
            yield site

    return begin


def kinds(groups: list[dict[str, Any]]) -> list[tuple[str, list[int]]]:
    return [(group.get("kind", "KIND_AUTO"), group.get("gpus", [])) for group in groups]


async def test_triton_ledger_and_user_agree_on_gpu_of_each_model(start: Start) -> None:
    async with start(bytes_of={"first": 3 * GIB, "second": 2 * GIB}) as site:
        await site.ready("first", 2.0, gpu_count=1, mode="pinned")
        (device,) = site.devices("first")
        number = int(device.removeprefix("gpu:"))
        assert kinds(site.gpus.requested_groups("first")) == [("KIND_GPU", [number])]
        assert kinds((await site.client.model_config("first"))["instance_group"]) == [("KIND_GPU", [number])]
        assert (await answer(site.client, "first"))[0] == 2.0
        other = f"gpu:{1 - number}"
        await site.until(lambda: site.resident() == {device: 3 * GIB, other: 0})
        await site.until(lambda: bool(site.registry.footprints.of("first", 1)))
        assert site.measured("first") == (3 * GIB, "processes")
        (assignment,) = site.placement("first").assignments
        assert assignment.why.startswith(f"on {device}, 1 of 2 GPUs; it fits into "), assignment.why
        await site.until(lambda: bool(site.registry.reports.history("first", 1, limit=1)))
        (report,) = site.registry.reports.history("first", 1, limit=1)
        configuration = next(check for check in report.checks if check.name == "configuration")
        assert configuration.verdict is Verdict.PASSED, configuration

        # Named GPUs have priority; a model that fits into neither gap shares a GPU.
        await site.ready("second", 3.0, gpus=(number,))
        assert kinds(site.gpus.requested_groups("second")) == [("KIND_GPU", [number])]
        assert site.placement("second").assignments[0].why == f"the only server; on {device}, as requested"
        await site.until(lambda: site.resident() == {device: 5 * GIB, other: 0})
        plan = await site.reconciler.plan_load("first", settings=DeploymentSettings(gpu_count=2))
        assert plan.servers[0].devices == ("gpu:0", "gpu:1")
        assert plan.servers[0].placed_why == "the only server"

        # All GPUs, if the settings do not limit them: as Triton does, and counted on each.
        await site.ready("wide", 4.0)
        assert kinds(site.gpus.requested_groups("wide")) == [("KIND_GPU", [0, 1])]
        await site.until(lambda: site.resident() == {device: 6 * GIB, other: GIB})
        await site.ready("host", 5.0, instance_kind="cpu")
        assert kinds(site.gpus.requested_groups("host")) == [("KIND_CPU", [])]


async def test_model_moves_to_requested_gpu_without_interruption(start: Start) -> None:
    async with start(products=("NVIDIA L4", "NVIDIA H200"), bytes_of={"moves": 2 * GIB}) as site:
        await site.ready("moves", 2.0, gpu_product="l4")
        assert site.devices("moves") == ("gpu:0",)
        config = await site.client.model_config("moves")
        answers: list[float] = []
        errors: list[str] = []
        stop = asyncio.Event()

        async def ask() -> None:
            while not stop.is_set():
                try:
                    answers.append((await answer(site.client, "moves"))[0])
                except InferenceError as error:
                    errors.append(str(error))

        asking = asyncio.create_task(ask())
        await site.ready("moves", 2.0, gpu_product="h200")
        stop.set()
        await asking
        assert (set(answers), errors) == ({2.0}, [])
        assert site.devices("moves") == ("gpu:1",)
        assert kinds(site.gpus.requested_groups("moves")) == [("KIND_GPU", [1])]
        after = await site.client.model_config("moves")
        digest = "tcp_config_digest"
        assert after["parameters"][digest] == config["parameters"][digest], (
            "the version is prepared once for all places"
        )
        await site.until(lambda: site.resident() == {"gpu:0": 0, "gpu:1": 2 * GIB})

        # A GPU that is lost takes nothing more with it than itself.
        site.gpus.lost.add(1)
        site.gpus.update()
        await site.until(lambda: bool(site.placement("moves").unplaced))
        assert "the only server does not have 1 GPU of product 'h200'" in site.placement("moves").unplaced
        await site.ready("moves", 2.0, gpu_count=1)
        assert kinds(site.gpus.requested_groups("moves")) == [("KIND_GPU", [0])]


async def test_restarted_control_plane_finds_models_on_their_gpus(
    start: Start, registry: Registry, reader: Callable[..., Reader], tmp_path: Path
) -> None:
    async with start(bytes_of={"a": 2 * GIB, "b": 3 * GIB}, by_process=False) as site:
        await site.ready("a", 2.0, gpus=(1,))
        await site.ready("b", 3.0, gpu_count=1, gpu_min_memory_bytes=GIB)
        homes = site.devices("b")
        await site.until(lambda: sum(site.resident().values()) == 5 * GIB)
        await site.until(
            lambda: all(site.registry.footprints.of(model, 1) for model in "ab")
        )  # the next one reads both
        assert site.measured("a") == (2 * GIB, "device"), "the driver tells of no process"
        await site.reconciler.stop()
        loads = {name: len(all_) for name, all_ in site.gpus.loads.items()}
        async with plane(registry, site.gpus, site.gpus.url, tmp_path, reader()) as again:
            for model in ("a", "b"):
                await again.until(lambda model=model: is_ready(again, model))  # type: ignore[misc]
            assert again.devices("b") == homes
            await again.until(lambda: sum(again.resident().values()) == 5 * GIB)
            assert {name: len(all_) for name, all_ in site.gpus.loads.items()} == loads, "nothing was loaded again"


def is_ready(site: Site, model: str) -> bool:
    status = site.reconciler.status(model)
    return status is not None and status.phase is Phase.READY


async def test_request_for_absent_gpu_is_refused_with_reason(start: Start) -> None:
    async with start() as site:
        status = await site.settled("greedy", gpu_count=3)
        assert (status.phase, status.message) == (Phase.FAILED, "the only server does not have 3 GPUs")
        plan = await site.reconciler.plan_load("greedy", settings=DeploymentSettings(gpu_product="B200"))
        assert not plan.possible
        assert plan.servers[0].why == "the only server does not have 1 GPU of product 'B200'"
        status = await site.settled("greedy", gpus=(7,))
        assert (status.phase, status.message) == (Phase.FAILED, "the only server does not have the GPUs 7")
        status = await site.settled("greedy", gpu_min_memory_bytes=100 * GIB)
        assert status.message == "the only server does not have 1 GPU with at least 100 GiB"
        assert "greedy" not in site.gpus.loads


async def test_triton_that_rejects_gpus_gets_none(
    embedded: EmbeddedTriton, machine: Machine, reader: Callable[..., Reader], registry: Registry, tmp_path: Path
) -> None:
    """The real one says so, on a machine whose driver tells of two."""
    async with (
        gpu_triton(embedded, machine) as gpus,
        plane(registry, gpus, embedded.grpc_url, tmp_path, reader()) as site,
    ):
        await site.ready("auto", 2.0)
        assert site.devices("auto") == ("host",)
        assert (await site.client.model_config("auto"))["instance_group"][0]["kind"] == "KIND_CPU"
        assert site.resident() == {"gpu:0": 0, "gpu:1": 0}
        (event,) = site.events("GpuRejected")
        assert event.startswith("gpus: Triton does not use gpu:0, gpu:1: gpus refused to load auto")
        status = await site.settled("insists", instance_kind="gpu")
        assert (status.phase, status.message) == (Phase.FAILED, "the only server does not have 1 GPU")
