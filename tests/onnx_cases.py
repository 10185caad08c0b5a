"""Publish and serve the single-operator cases of the onnx package, and count what works.

Run as ``python -m tests.onnx_cases [--every N] [--first K] [--no-triton]``. The package computes the inputs and outputs
of each case. A case *validates* where `converters.golden_samples.validate` passes, *has samples* where golden samples
are found for it, and *answers* where a real Triton loads it with our configuration and its answer to the case's inputs
is the case's output.
"""

import argparse
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tritonclient.grpc.aio import InferenceServerClient

from controlplane.domain.arrays import Array
from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.manifest import FileEntry, Format, Manifest
from controlplane.domain.signature import Signature
from controlplane.errors import ControlPlaneError
from controlplane.triton.model_config import build_config
from converters.golden_samples import record, validate
from converters.jobs import RecordJob, ValidateJob
from converters.runtimes import OnnxRuntime, RunError
from tests.support.triton import LoopThread, RunningTriton, running_triton


@dataclass(frozen=True)
class Case:
    """One operator with inputs and outputs."""

    name: str
    model: bytes
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    rtol: float
    atol: float


@dataclass(frozen=True)
class Result:
    """What became of a case; ``why`` says what failed first."""

    name: str
    validates: bool
    samples: int
    loads: bool
    answers: bool
    why: str = ""


def cases(every: int = 1, first: int = 0) -> Iterator[Case]:
    """Yield every N-th case, in the package's order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    for case in found[first::every]:
        (inputs, outputs), *_ = case.data_sets or [((), ())]
        assert case.model is not None
        yield Case(case.name, case.model.SerializeToString(), inputs, outputs, case.rtol, case.atol)


def examine(case: Case, folder: Path) -> tuple[Result, Signature | None]:
    """Validate and record a case."""
    path = folder / "model.onnx"
    path.write_bytes(case.model)
    report = validate(ValidateJob(source=path), lambda _stage, _message: None)
    why = "; ".join(check.message for check in report.checks if not check.ok)
    try:
        recorded = record(RecordJob(source=path), lambda _stage, _message: None)
    except ControlPlaneError as error:
        return Result(case.name, report.ok, 0, False, False, why or error.message), None
    signature = recorded.signature if recorded.unservable is None else None
    if not recorded.samples:
        why = why or recorded.unservable or "; ".join(recorded.warnings)
    return Result(case.name, report.ok, len(recorded.samples), False, False, why), signature


async def serve(case: Case, signature: Signature, path: Path, triton: RunningTriton) -> tuple[bool, bool, str]:
    """Load a case into a real Triton and ask it; return whether it loads, whether it answers as stored, and why not."""
    entry = FileEntry(path="model.onnx", sha256="0" * 64, size_bytes=len(case.model))
    manifest = Manifest(format=Format.ONNX, files=(entry,), signature=signature)
    client = triton.client()
    try:
        config = build_config(case.name, manifest, DeploymentSettings(), [1])
        triton.repository.stage(case.name, 1, {"model.onnx": path}, config)
        await client.load(case.name, config)
        inputs = {
            spec.name: _as_sent(_array(array)) for spec, array in zip(signature.inputs, case.inputs, strict=False)
        }
        answer, _ = await client.infer(case.name, inputs, config=config)
    except (ControlPlaneError, ValueError) as error:
        loads = await client.ready(case.name, 1)
        return loads, False, (_refused_alone(case, path) if loads else None) or str(error)
    finally:
        async with InferenceServerClient(triton.server.grpc_url) as control:
            await control.unload_model(case.name)
        triton.repository.remove_model(case.name)
        await client.close()
    for spec, expected in zip(signature.outputs, case.outputs, strict=False):
        if not _same(answer[spec.name], _array(expected), case):
            alone = OnnxRuntime(path).run(inputs)
            itself = _same(alone[spec.name], answer[spec.name], case)
            who = "ONNX Runtime itself gives" if itself else "only Triton gives"
            return True, False, f"{who} another output {spec.name!r} than the stored one"
    return True, True, ""


def _refused_alone(case: Case, path: Path) -> str | None:
    """Return how ONNX Runtime alone refuses the case's inputs, named as in the file; None where it accepts them."""
    names = [entry.name for entry in onnx.load_from_string(case.model).graph.input]
    inputs = {name: _as_sent(_array(array)) for name, array in zip(names, case.inputs, strict=False)}
    try:
        OnnxRuntime(path).run(inputs)
    except RunError as error:
        return f"ONNX Runtime itself refuses the case's inputs: {error}"
    return None


def _array(value: Any) -> Array:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _as_sent(array: Array) -> Array:
    return array.astype(object) if array.dtype.kind in "SU" else array


def _same(given: Array, expected: Array, case: Case) -> bool:
    if given.shape != expected.shape:
        return False
    if expected.dtype.kind in "OSU":
        texts = [one.decode() if isinstance(one, bytes) else str(one) for one in given.reshape(-1)]
        return texts == [str(one) for one in expected.reshape(-1)]
    return bool(np.allclose(given, expected, rtol=case.rtol, atol=case.atol, equal_nan=True))


def run(every: int, first: int, *, with_triton: bool) -> list[Result]:
    """Run the cases and return what became of each."""
    results = []
    with tempfile.TemporaryDirectory(prefix="onnx-cases-") as name:
        folder = Path(name)
        examined = []
        for number, case in enumerate(cases(every, first)):
            (folder / str(number)).mkdir()
            examined.append((case, *examine(case, folder / str(number))))
        if not with_triton:
            return [result for _, result, _ in examined]
        loop = LoopThread()
        try:
            with running_triton(folder / "triton") as triton:
                for number, (case, result, signature) in enumerate(examined):
                    if signature is None:
                        results.append(result)
                        continue
                    path = folder / str(number) / "model.onnx"
                    loads, answers, why = loop.run(serve(case, signature, path, triton))
                    texts = [text for text in (result.why, why) if text]
                    results.append(
                        Result(case.name, result.validates, result.samples, loads, answers, " | ".join(texts))
                    )
        finally:
            loop.close()
    return results


def main() -> None:
    """Print the counts, and each case that did not answer as stored with the reason."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=8, help="Take every N-th case.")
    parser.add_argument("--first", type=int, default=0, help="The first case.")
    parser.add_argument("--no-triton", action="store_true", help="Validate and record only.")
    options = parser.parse_args()
    results = run(options.every, options.first, with_triton=not options.no_triton)
    for result in results:
        if not (result.validates and result.samples and result.answers):
            flags = Counter({"validates": result.validates, "samples": result.samples, "answers": result.answers})
            print(
                f"{result.name}: {', '.join(f'{key} {int(value)}' for key, value in flags.items())}: {result.why[:300]}"
            )
    print(f"{len(results)} cases")
    print(f"validate: {sum(result.validates for result in results)}")
    print(f"have samples: {sum(result.samples > 0 for result in results)}")
    print(f"load: {sum(result.loads for result in results)}")
    print(f"answer as stored: {sum(result.answers for result in results)}")


if __name__ == "__main__":
    main()
