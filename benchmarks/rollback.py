"""Rollback within the bake window, against the raw ``load_model`` call that changes the policy.

Ours: commit the rollback to the store (on disk, forced), wake the reconciler, and stop the clock when the switch is
done and an un-versioned inference is answered by the version before. Theirs: send the same configuration with
``load_model`` and make the same inference. Both have two versions of one model loaded; in alternating order, on one
Triton. Bringing the newer version back in between is not timed.
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

from controlplane.domain.rollout.rollback import rollback_target
from tests.support.control import Control, control
from tests.support.models import publish_affine
from tests.support.triton import running_triton

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """Medians over the repetitions, in milliseconds.

    Attributes:
        what: Which part.
        ours_ms: Through the control plane.
        raw_ms: The raw call.
        ratio: ours / raw.
        repetitions: How often each side ran.
    """

    what: str
    ours_ms: float
    raw_ms: float
    ratio: float
    repetitions: int


class Bench:
    def __init__(self, at: Control, raw: aio.InferenceServerClient) -> None:
        self._at = at
        self._raw = raw

    async def ours(self) -> dict[str, float]:
        """One rollback; the clock stops when the version before answers."""
        deployments, reconciler = self._at.registry.deployments, self._at.reconciler
        history = deployments.history("ours")
        spec = rollback_target(history)
        last = reconciler.events()[-1].id
        began = time.perf_counter()
        revision = deployments.put(spec, after=history[0], actor="benchmark", reason="rollback")
        committed = time.perf_counter()
        reconciler.wake("ours")
        while not any(event.reason == "VersionActivated" for event in await reconciler.wait_event(last, 10)):
            last = reconciler.events()[-1].id
        switched = time.perf_counter()
        await self.infer("ours", 1)
        answered = time.perf_counter()
        status = await reconciler.wait_settled("ours", revision.number, 10)
        settled = time.perf_counter()
        assert status.servers[0].serving_version == 1, status
        return {
            "commit": committed - began,
            "switch": switched - committed,
            "answer": answered - began,
            "settled": settled - began,
        }

    async def theirs(self, configs: dict[int, str]) -> dict[str, float]:
        began = time.perf_counter()
        await self._raw.load_model("raw", config=configs[1])
        switched = time.perf_counter()
        await self.infer("raw", 1)
        return {"switch": switched - began, "answer": time.perf_counter() - began}

    async def infer(self, model: str, version: int) -> None:
        x = aio.InferInput("x", (1, 4), "FP32")
        x.set_data_from_numpy(np.ones((1, 4), np.float32))
        answer = await self._raw.infer(model, [x])
        assert answer.get_response().model_version == str(version)

    async def forward(self, configs: dict[int, str]) -> None:
        """Bring version 2 back on both sides, and wait until what is old is gone."""
        await self._at.settled(self._at.put("ours", 2, bake_seconds=3600))
        await self._raw.load_model("raw", config=configs[2])
        for model in ("ours", "raw"):
            await self.infer(model, 2)
        await asyncio.sleep(0.3)

    async def run(self, repetitions: int) -> list[Row]:
        at = self._at
        await at.settled(at.put("ours", 1, bake_seconds=3600))
        await at.settled(at.put("ours", 2, bake_seconds=3600))
        config: dict[str, Any] = await at.client.model_config("ours")
        configs = {}
        for version, versions in ((1, [1]), (2, [1, 2])):
            policy = {"specific": {"versions": versions}}
            configs[version] = json.dumps({**config, "name": "raw", "version_policy": policy})
        for version in (1, 2):
            source = at.repository.root / "ours" / str(version) / "model.onnx"
            at.repository.stage("raw", version, {"model.onnx": source}, {**config, "name": "raw"})
        ours: list[dict[str, float]] = []
        theirs: list[dict[str, float]] = []
        for number in range(repetitions + 1):  # the first warms up and is not counted
            await self.forward(configs)
            await asyncio.sleep(1.5)
            if number % 2:
                mine, raw = await self.ours(), await self.theirs(configs)
            else:
                raw, mine = await self.theirs(configs), await self.ours()
            if number:
                ours.append(mine)
                theirs.append(raw)

        def row(what: str, part: str, against: str) -> Row:
            one = statistics.median(sample[part] for sample in ours) * 1000
            other = statistics.median(sample[against] for sample in theirs) * 1000
            return Row(what, round(one, 2), round(other, 2), round(one / other, 2), repetitions)

        total = [sample["commit"] + sample["switch"] for sample in ours]
        raw_median = statistics.median(sample["switch"] for sample in theirs)
        return [
            row("commit of the rollback alone, against the raw call", "commit", "switch"),
            row("woken to switched, against the raw call", "switch", "switch"),
            Row(
                "commit to switched, against the raw call",
                round(statistics.median(total) * 1000, 2),
                round(raw_median * 1000, 2),
                round(statistics.median(total) / raw_median, 2),
                repetitions,
            ),
            row("commit to the first answer, against call to answer", "answer", "answer"),
            row("commit to proved again, against call to answer", "settled", "answer"),
        ]


def report(rows: list[Row]) -> None:
    print(f"\n{'':54}{'ours ms':>9}{'raw ms':>9}{'ratio':>8}")
    for row in rows:
        print(f"{row.what:54}{row.ours_ms:9.2f}{row.raw_ms:9.2f}{row.ratio:8.2f}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "rollback.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


async def measure(folder: Path, repetitions: int) -> list[Row]:
    with running_triton(folder / "triton") as triton:
        async with control(triton, folder) as at, aio.InferenceServerClient(triton.server.grpc_url) as raw:
            for scale in (1.0, 2.0):
                publish_affine(at.registry, "ours", folder, scale=scale)
            return await Bench(at, raw).run(repetitions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=12)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rollback-") as name:
        report(asyncio.run(measure(Path(name), arguments.repetitions)))


if __name__ == "__main__":
    main()
