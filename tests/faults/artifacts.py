"""Corrupted models and samples, made by hypothesis, cause only clean errors and no memory growth.

ONNX and TorchScript files go through the worker's own code (inspect, record, validate, convert), in a process each, as
they do in the control plane. Samples (``.npz``) are read by the control plane itself, so they are read here.
"""

import contextlib
import io
import json
import subprocess
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from controlplane import errors
from controlplane.domain.manifest import Format
from controlplane.domain.samples import decode_samples, encode_samples
from controlplane.domain.signature import DataType, Signature, TensorSpec
from controlplane.errors import ControlPlaneError, InvalidInputError
from controlplane.services.sample_files import read_samples
from converters.jobs import ConvertJob, InspectJob, Job, RecordJob, ValidateJob
from converters.options import ConversionOptions, SamplingOptions
from tests.faults.cases import Row
from tests.support.api import onnx_scale
from tests.support.models import affine_samples

_JOB_SECONDS = 60
_JOB_MEMORY_BYTES = 4 << 30
_GROWTH_BYTES = 32 << 20
_ONE = TensorSpec(name="x", dtype=DataType.FP32, shape=(-1, 2))
_SIGNATURE = Signature(inputs=(_ONE,), outputs=(_ONE.model_copy(update={"name": "y"}),), batched=True)
_SAMPLING = SamplingOptions(sample_count=1)

Edit = tuple[str, float, bytes]

# An edit: the kind of change, its position (as a part of the whole), and the bytes.
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "insert", "cut", "truncate", "repeat"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=6,
)


def edited(data: bytes, edits: list[Edit]) -> bytes:
    """Corrupt bytes."""
    for what, part, new in edits:
        at = int(part * len(data))
        if what == "flip" and data:
            data = data[:at] + bytes([data[at] ^ (1 << new[0] % 8)]) + data[at + 1 :]
        elif what == "set":
            data = data[:at] + new + data[at + len(new) :]
        elif what == "insert":
            data = data[:at] + new + data[at:]
        elif what == "cut":
            data = data[:at] + data[at + new[0] :]
        elif what == "truncate":
            data = data[:at]
        elif what == "repeat":
            data = data[:at] + data[at : at + 64] * (new[0] % 8) + data[at:]
    return data


class _Scale(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 3


def torchscript_scale() -> bytes:
    """y = 3x as TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(_Scale())
        buffer = io.BytesIO()
        torch.jit.save(scripted, buffer)
    return buffer.getvalue()


@dataclass
class Findings:
    """The results of many cases.

    Attributes:
        cases: How many.
        outcomes: Number of cases by outcome.
        violations: Violations.
        peak_bytes: Largest resident memory of a worker.
    """

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    peak_bytes: int = 0

    def violated(self, what: str) -> None:
        if len(self.violations) < 50:
            self.violations.append(what)


@contextlib.contextmanager
def workers() -> Iterator[Callable[[Path], tuple[int, int]]]:
    """Provide a function that runs the job of a folder and returns exit status and largest resident memory."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.artifact_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def work(folder: Path) -> tuple[int, int]:
        assert process.stdin is not None
        assert process.stdout is not None
        request = {"folder": str(folder), "seconds": _JOB_SECONDS, "memory_bytes": _JOB_MEMORY_BYTES}
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        status, peak = process.stdout.readline().split()
        return int(status), int(peak)

    try:
        yield work
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


def jobs(source: Path, kind: Format, output: Path) -> list[Job]:
    """Return the jobs that process an untrusted artifact."""
    signature = _SIGNATURE if kind is Format.TORCHSCRIPT else None
    found: list[Job] = [
        InspectJob(source=source, signature=signature),
        ValidateJob(source=source, signature=signature, sampling=_SAMPLING),
        RecordJob(source=source, signature=signature, format=kind, sampling=_SAMPLING),
    ]
    if kind is Format.TORCHSCRIPT:
        options = ConversionOptions(target=Format.ONNX, sample_count=1)
        found.append(ConvertJob(source=source, signature=signature, options=options, output_dir=output))
    return found


def judge(findings: Findings, what: str, folder: Path, status: int, peak: int) -> None:
    """Record how one job ended; a clean end is a result or an error of the project in one line."""
    findings.cases += 1
    findings.peak_bytes = max(findings.peak_bytes, peak)
    if status < 0:
        # The worker is a separate process for this case: the control plane reports its death and continues.
        findings.outcomes[f"worker ended by signal {-status}"] += 1
        if status == -14:
            findings.violated(f"{what}: not finished in {_JOB_SECONDS} s")
        return
    try:
        document: dict[str, Any] = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError) as error:
        findings.violated(f"{what}: exit status {status}, no result: {error!r}")
        return
    if "result" in document:
        findings.outcomes["accepted"] += 1
        return
    kind, message = document["error"]["type"], document["error"]["message"]
    findings.outcomes[kind] += 1
    if not issubclass(getattr(errors, kind, object), ControlPlaneError) or not message or "Traceback" in message:
        findings.violated(f"{what}: {kind}: {message[:200]}")


def fuzz_models(folder: Path, kind: Format, seed: bytes, count: int, *, derandomize: bool) -> Findings:
    """Corrupt a model file ``count`` times and have it read, run, and converted."""
    findings = Findings()
    name = kind.file_name
    assert name is not None
    with workers() as work:
        number = 0

        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            derandomize=derandomize,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(edits=EDITS, choice=st.integers(0, 3))
        def attempt(edits: list[Edit], choice: int) -> None:
            nonlocal number
            number += 1
            place = folder / f"{kind.value}{number}"
            source = place / "artifact"
            source.mkdir(parents=True)
            (source / name).write_bytes(edited(seed, edits))
            possible = jobs(source, kind, place / "output")
            job = possible[choice % len(possible)]
            (place / "job.json").write_text(job.model_dump_json())
            status, peak = work(place)
            judge(findings, f"{kind.value} {job.kind} {edits}", place, status, peak)

        attempt()
    return findings


def hostile_archives() -> st.SearchStrategy[bytes]:
    """Draw sample archives: corrupted valid ones, and archives of invalid arrays."""
    whole = encode_samples(affine_samples(scale=2.0, count=1))
    plain = io.BytesIO()
    np.savez(plain, x=np.ones((2, 4), np.float32))
    corrupted = st.builds(edited, st.sampled_from([whole, plain.getvalue()]), EDITS)
    descriptions = st.sampled_from(
        ["<f4", "<f8", "|O", "<U4", "|S3", "<M8[s]", "|V8", "<f4,<f4", "x", "", "<i999", "('a', '<f4')"]
    )
    headers = st.builds(
        lambda descr, order, shape: f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}",
        descriptions,
        st.sampled_from(["True", "False", "None"]),
        st.one_of(
            st.lists(st.integers(-2, 2**40), max_size=4).map(lambda sizes: f"({''.join(f'{n},' for n in sizes)})"),
            st.text(max_size=12),
        ),
    )
    arrays = st.builds(
        lambda header, data: b"\x93NUMPY\x01\x00" + (len(header) % 65536).to_bytes(2, "little") + header + data,
        st.one_of(headers.map(str.encode), st.binary(max_size=64)),
        st.binary(max_size=64),
    )
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    )
    entries = st.fixed_dictionaries(
        {
            "inputs": st.dictionaries(
                st.sampled_from(["x", "y"]),
                st.fixed_dictionaries(
                    {
                        "key": st.sampled_from(["0.inputs.0", "index", "nothing"]) | json_values,
                        "shape": st.lists(st.integers(-2, 2**62), max_size=3) | json_values,
                        "bytes": st.booleans(),
                    }
                ),
                max_size=2,
            ),
            "outputs": json_values,
        }
    )
    indices = (st.lists(entries, max_size=2) | json_values).map(lambda value: json.dumps(value).encode())
    return corrupted | st.builds(_archive, indices, arrays, st.sampled_from([0, 8, 12, 14]), EDITS | st.just([]))


def _archive(index: bytes, array: bytes, compression: int, edits: list[Edit]) -> bytes:
    buffer, npy = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array(npy, np.frombuffer(index, np.uint8), allow_pickle=False)
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("index.npy", npy.getvalue())
        archive.writestr("0.inputs.0.npy", array)
    return edited(buffer.getvalue(), edits)


def fuzz_samples(folder: Path, count: int, *, derandomize: bool) -> Findings:
    """Read ``count`` corrupted sample archives as the control plane does, in this process, and watch its memory."""
    findings = Findings()
    path = folder / "samples.npz"
    folder.mkdir(parents=True, exist_ok=True)
    myself = psutil.Process()
    warm = count // 3
    before = 0

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=derandomize,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=hostile_archives())
    def attempt(data: bytes) -> None:
        nonlocal before
        path.write_bytes(data)
        for read in (lambda: read_samples(path), lambda: decode_samples(data)):
            findings.cases += 1
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    read()
            except InvalidInputError:
                findings.outcomes["InvalidInputError"] += 1
            except Exception as error:  # noqa: BLE001 - unexpected errors are the violations
                findings.outcomes[type(error).__name__] += 1
                findings.violated(f"samples: {error!r} on {data[:120]!r}…")
            else:
                findings.outcomes["accepted"] += 1
        if findings.cases == 2 * warm:
            before = myself.memory_info().rss

    attempt()
    growth = myself.memory_info().rss - before
    if before and growth > _GROWTH_BYTES:
        findings.violated(f"the process grew by {growth >> 20} MiB over {findings.cases - 2 * warm} archives")
    return findings


def fuzz_artifacts(folder: Path, count: int, *, derandomize: bool = False) -> list[Row]:
    """Run all cases of this module and return them as table rows."""
    found = {
        "bad input: ONNX": fuzz_models(folder / "onnx", Format.ONNX, onnx_scale(2), count, derandomize=derandomize),
        "bad input: TorchScript": fuzz_models(
            folder / "torchscript", Format.TORCHSCRIPT, torchscript_scale(), count, derandomize=derandomize
        ),
        "bad input: samples (npz)": fuzz_samples(folder / "samples", count, derandomize=derandomize),
    }
    rows = []
    for name, findings in found.items():
        outcomes = ", ".join(f"{count} {kind}" for kind, count in findings.outcomes.most_common())
        print(f"{name}: {findings.cases} cases: {outcomes}; worker's peak {findings.peak_bytes >> 20} MiB", flush=True)
        rows.append(Row(name, findings.cases, findings.violations, [], []))
    return rows
