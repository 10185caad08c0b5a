"""Deploying through the control plane, against a raw ``tritonclient`` load of the same staged model plus its proof.

Ours: commit the deployment, wake the reconciler, wait for Ready; so it fetches the blobs from the store into the cache,
stages them, loads and proves. Theirs: the same files lie staged already and the very same configuration is sent with
``load_model``; then the golden samples are asked with ``infer``, as the proof does. Both sides use models of names of
their own that were never loaded, in alternating order, on one Triton. "cached" has the blobs in the cache already, as
after a publish on the same machine; the others get and verify them on the way. "proof on record" has deployed and
proved the same bytes under another model's name before, as from staging to production, so that they are loaded once.
Loads of one and the same model differ by more than our part of a deploy; so that part is shown for itself, too.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import aio

from controlplane.domain.deployment import DeploymentSettings
from controlplane.triton.model_config import build_config
from controlplane.triton.repository import layout
from tests.support.control import Control, control
from tests.support.models import publish_affine
from tests.support.triton import running_triton

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """Medians over the repetitions, in seconds.

    Attributes:
        what: First or forward deploy, of how large a model, and whether its proof is on record.
        ours_seconds: From before the commit of the deployment to Ready.
        load_seconds: The raw load.
        proof_seconds: The raw inferences of the golden samples.
        ratio: ours / (load + proof).
        overhead_seconds: Ours without its own load, proof and unload: commit, fetch, stage, and all the deciding.
        overhead_ratio: 1 + overhead / (load + proof), free of the difference between one load and the next.
        stages: Ours by stage, as the deployment's status has it; commit is the deployment's revision in the store.
        repetitions: How often each side ran.
    """

    what: str
    ours_seconds: float
    load_seconds: float
    proof_seconds: float
    ratio: float
    overhead_seconds: float
    overhead_ratio: float
    stages: dict[str, float]
    repetitions: int


class Bench:
    def __init__(self, at: Control, raw: aio.InferenceServerClient, folder: Path, repetitions: int) -> None:
        self._at = at
        self._raw = raw
        self._folder = folder
        self._repetitions = repetitions

    async def run(self, size_mib: int, *, forward: bool = False, cached: bool = False, on_record: bool = False) -> Row:
        ours: list[float] = []
        theirs: list[tuple[float, float]] = []
        stages: list[dict[str, float]] = []
        what = f"{'forward' if forward else 'first'}-{size_mib}{'-cached' * cached}{'-on-record' * on_record}"
        for number in range(self._repetitions + 1):  # the first warms up and is not counted
            sides = [self._ours, self._theirs] if number % 2 else [self._theirs, self._ours]
            for side in sides:
                model = f"{what}-{number}-{side.__name__.strip('_')}"
                versions = self._publish(model, size_mib, number, forward)
                if on_record and side == self._ours:
                    await self._prove_elsewhere(f"{model}-staging", size_mib, number)
                if cached:
                    with self._at.registry.checkout(self._at.registry.manifest(model, versions[-1])):
                        pass
                result = await side(model, versions)
                assert not (on_record and "unload" in result), "it was loaded as a candidate as well"
                await self._forget(model)
                if number == 0:
                    continue
                if side == self._ours:
                    ours.append(result["total"])
                    stages.append(result)
                else:
                    theirs.append((result["load"], result["prove"]))
        load = statistics.median(seconds for seconds, _ in theirs)
        proof = statistics.median(seconds for _, seconds in theirs)
        both = statistics.median(map(sum, theirs))
        overhead = statistics.median(
            stage["total"] - sum(stage.get(name, 0.0) for name in ("load", "prove", "unload")) for stage in stages
        )
        names = dict.fromkeys(name for stage in stages for name in stage if name != "total")
        print(f"  {what}: ours {spread(ours)}; raw {spread([sum(pair) for pair in theirs])}", flush=True)
        size = f"{size_mib} MiB" if size_mib else "tiny model"
        return Row(
            what=f"{'forward' if forward else 'first'} deploy, {size}{', cached' * cached}"
            f"{', proof on record' * on_record}",
            ours_seconds=round(statistics.median(ours), 4),
            load_seconds=round(load, 4),
            proof_seconds=round(proof, 4),
            ratio=round(statistics.median(ours) / both, 3),
            overhead_seconds=round(overhead, 4),
            overhead_ratio=round(1 + overhead / both, 3),
            stages={name: round(statistics.median(stage.get(name, 0.0) for stage in stages), 4) for name in names},
            repetitions=self._repetitions,
        )

    def _publish(self, model: str, size_mib: int, number: int, forward: bool) -> list[int]:
        # Other bytes each time: neither side's blobs are in the cache.
        scales = [number + 1.25, number + 1.5] if forward else [number + 1.25]
        return [
            publish_affine(self._at.registry, model, self._folder / model, scale=scale, reserve_mib=size_mib)
            for scale in scales
        ]

    async def _prove_elsewhere(self, model: str, size_mib: int, number: int) -> None:
        """Deploy the same bytes as the newest version under another model's name, and remove them again."""
        registry = self._at.registry
        version = publish_affine(registry, model, self._folder / model, scale=number + 1.5, reserve_mib=size_mib)
        await self._at.settled(self._at.put(model, version))
        records = f"proofs/{registry.manifest(model, version).content_digest}/"
        async with asyncio.timeout(60):
            while not list(registry.store.list(records)):
                await asyncio.sleep(0.05)
        await self._forget(model)

    async def _ours(self, model: str, versions: list[int]) -> dict[str, float]:
        if len(versions) > 1:
            await self._at.settled(self._at.put(model, versions[0]))
            await asyncio.sleep(0.5)
        began = time.perf_counter()
        revision = self._at.put(model, versions[-1])
        committed = time.perf_counter()
        status = await self._at.settled(revision)
        ended = time.perf_counter()
        return {"total": ended - began, "commit": committed - began, **status.servers[0].seconds}

    async def _theirs(self, model: str, versions: list[int]) -> dict[str, float]:
        configs = [self._stage(model, versions[: position + 1]) for position in range(len(versions))]
        if len(versions) > 1:
            await self._raw.load_model(model, config=json.dumps(configs[0]))
            await asyncio.sleep(0.5)
        config = json.dumps(configs[-1])
        samples = self._at.registry.samples(self._at.registry.manifest(model, versions[-1]))
        began = time.perf_counter()
        await self._raw.load_model(model, config=config)
        loaded = time.perf_counter()
        for sample in samples:
            x = aio.InferInput("x", sample.inputs["x"].shape, "FP32")
            x.set_data_from_numpy(sample.inputs["x"])
            answer = await self._raw.infer(model, [x], model_version=str(versions[-1]))
            assert np.allclose(answer.as_numpy("y"), sample.outputs["y"], atol=1e-4, rtol=1e-3)
        return {"load": loaded - began, "prove": time.perf_counter() - loaded}

    def _stage(self, model: str, versions: list[int]) -> dict[str, Any]:
        registry = self._at.registry
        manifest = registry.manifest(model, versions[-1])
        samples = registry.samples(manifest)
        config = build_config(model, manifest, DeploymentSettings(), versions, samples=samples)
        with registry.checkout(manifest) as files:
            placed = {path: files[entry.path] for path, entry in layout(manifest).items()}
            self._at.repository.stage(model, versions[-1], placed, config)
        return config

    async def _forget(self, model: str) -> None:
        deployed = next((found for found in self._at.registry.deployments.list() if found.spec.model == model), None)
        if deployed is not None:  # the raw side deployed nothing
            gone = self._at.registry.deployments.put(
                deployed.spec.with_changes(deleted=True), after=deployed, actor="benchmark", reason=""
            )
            self._at.reconciler.wake(model)
            await self._at.reconciler.wait_settled(model, gone.number, 60)
        else:
            await self._at.client.unload(model)
            self._at.repository.remove_model(model)


def spread(seconds: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in sorted(seconds))


async def measure(folder: Path, repetitions: int, large_mib: int) -> list[Row]:
    with running_triton(folder / "triton") as triton:
        async with control(triton, folder) as at, aio.InferenceServerClient(triton.server.grpc_url) as raw:
            bench = Bench(at, raw, folder, repetitions)
            return [
                await bench.run(0),
                await bench.run(large_mib, cached=True),
                await bench.run(large_mib),
                await bench.run(0, forward=True),
                await bench.run(0, forward=True, on_record=True),
            ]


def report(rows: list[Row]) -> None:
    print(
        f"\n{'seconds':32}{'ours':>8}{'load':>8}{'proof':>8}{'ratio':>7}{'our part':>10}{'ratio':>7}   our stages, ms"
    )
    for row in rows:
        stages = " ".join(f"{name} {seconds * 1000:.1f}" for name, seconds in row.stages.items())
        print(
            f"{row.what:32}{row.ours_seconds:8.3f}{row.load_seconds:8.3f}{row.proof_seconds:8.3f}{row.ratio:7.2f}"
            f"{row.overhead_seconds:10.4f}{row.overhead_ratio:7.3f}   {stages}"
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "deploy.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=8)
    parser.add_argument("--large-mib", type=int, default=128)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="deploy-") as name:
        report(asyncio.run(measure(Path(name), arguments.repetitions, arguments.large_mib)))


if __name__ == "__main__":
    main()
