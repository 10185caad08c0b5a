"""Whether a version loads on a Triton server, from facts recorded when it was published. Pure.

The embedded server's backends are Python packages and accept more than Triton's own: newer ONNX files, and types and
results that LibTorch's backend refuses. `check` compares a version with one *target*: the embedded server, an image of
NVIDIA by its release, or a server by its name. A fact that is not known gives `Loads.UNKNOWN`, never `Loads.NO`.

The rules for TorchScript come from ``src/pt/model_state.cc``, ``src/pt/model_instance_state.cc`` and
``src/libtorch_utils.cc`` in https://github.com/triton-inference-server/pytorch_backend (2026). They were read there,
not tested by running the backend. Operators are not compared, for either format.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from controlplane.domain.manifest import Format, Manifest
from controlplane.domain.pipelines import ENSEMBLE
from controlplane.domain.signature import DataType, Signature, TensorSpec
from controlplane.domain.triton_releases import RELEASES, OnnxLimits, limits_of_release, limits_of_runtime

EMBEDDED = "embedded"
IMAGE = r"\d\d\.(0[1-9]|1[0-2])"
"""Pattern of an image's release."""
LIBTORCH_TYPES = frozenset({
    DataType.BOOL, DataType.UINT8, DataType.INT8, DataType.INT16, DataType.INT32, DataType.INT64,
    DataType.FP16, DataType.FP32, DataType.FP64, DataType.BYTES,
})  # fmt: skip
"""Types of inputs and outputs that Triton's PyTorch backend passes; strings only with one dimension."""
_ARGUMENTS = {"Tensor", "List[str]"}
_DICTIONARY = "Dict[str, Tensor]"
_IMAGE = re.compile(IMAGE)


class Loads(StrEnum):
    """Whether a version loads on a target."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class TargetReport(BaseModel):
    """Whether a version loads on one target, and why not."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    target: str = Field(description="The target: embedded, the release of an image as YY.MM, or a server's name.")
    runs: str = Field(description="What would run the version there, as far as known.")
    loads: Loads = Field(description="Whether it loads: yes, no, or unknown if a fact is missing.")
    reasons: tuple[str, ...] = Field(default=(), description="Why it does not load, or which facts are missing.")


@dataclass(frozen=True, slots=True)
class Target:
    """A Triton server that a version may run on.

    Attributes:
        name: See `TargetReport.target`.
        runs: See `TargetReport.runs`.
        onnx: What its ONNX Runtime loads; None if unknown.
        libtorch: Whether TorchScript runs in Triton's own PyTorch backend; None if unknown.
        backends: Triton backends that it has; None if unknown.
    """

    name: str
    runs: str
    onnx: OnnxLimits | None = None
    libtorch: bool | None = None
    backends: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a version needs, from its manifest; a missing fact is None.

    Attributes:
        format: Its format.
        signature: Inputs and outputs.
        unservable: Why no Triton can serve it.
        ir_version: ONNX: version of the file format.
        opsets: ONNX: opset by domain.
        arguments: TorchScript: types of the arguments of ``forward``, by name and in order.
        returns: TorchScript: types that ``forward`` returns, one for each element of a tuple.
        backend: Model directory: the backend that its configuration names.
    """

    format: Format
    signature: Signature | None = None
    unservable: str | None = None
    ir_version: int | None = None
    opsets: Mapping[str, int] | None = None
    arguments: Mapping[str, str] | None = None
    returns: tuple[str, ...] | None = None
    backend: str = ""

    @classmethod
    def of(
        cls,
        format: Format,  # noqa: A002 - the name in the API
        attributes: Mapping[str, JsonValue],
        signature: Signature | None,
        unservable: str | None = None,
        backend: str = "",
    ) -> "ModelFacts":
        """Read the facts that an inspection or a manifest contains."""
        ir_version, opsets = attributes.get("ir_version"), attributes.get("opsets")
        arguments, returns = attributes.get("arguments"), attributes.get("returns")
        return cls(
            format,
            signature,
            unservable,
            ir_version if isinstance(ir_version, int) and ir_version > 0 else None,
            {name: one for name, one in opsets.items() if isinstance(one, int)} if isinstance(opsets, dict) else None,
            {name: str(one) for name, one in arguments.items()} if isinstance(arguments, dict) else None,
            tuple(str(one) for one in returns) if isinstance(returns, list | tuple) else None,
            backend,
        )

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> "ModelFacts":
        """Read the facts of a published version."""
        backend = manifest.backend if manifest.format is Format.TRITON else ""
        return cls.of(manifest.format, manifest.attributes, manifest.signature, manifest.unservable, backend)


def image_target(release: str, name: str = "") -> Target:
    """Return the target for NVIDIA's image of a release, such as 25.09.

    Args:
        release: The release.
        name: Name of the server that runs it; empty for the image itself.
    """
    limits = limits_of_release(release)
    runtime = f"ONNX Runtime {limits.runtime}" if limits else "ONNX Runtime of an unknown version"
    return Target(name or release, f"NVIDIA's image {release} ({runtime}, LibTorch)", limits, libtorch=True)


def embedded_target(packages: Mapping[str, str], name: str = EMBEDDED) -> Target:
    """Return the target for an embedded server.

    Args:
        packages: Version of the Python package that runs each of its backends; a missing backend is not installed.
        name: Name of the server.
    """
    shown = {"onnxruntime": "onnxruntime", "pytorch": "torch"}
    runs = ", ".join(f"{shown.get(one, one)} {version}" for one, version in sorted(packages.items())) or "no packages"
    limits = limits_of_runtime(packages["onnxruntime"]) if "onnxruntime" in packages else None
    return Target(
        name, f"the embedded server ({runs})", limits, libtorch=False, backends=frozenset(packages) | {"python"}
    )


def with_native_backends(target: Target, native: AbstractSet[str], release: str) -> Target:
    """Return the target for an embedded server some of whose backends are Triton's own.

    Args:
        target: The target for an embedded server without such backends.
        native: Names of its own backends.
        release: Release of NVIDIA's images that has its version; empty if unknown.
    """
    if not native:
        return target
    return replace(
        target,
        runs=f"the embedded server, with Triton's own backends {', '.join(sorted(native))}",
        onnx=limits_of_release(release) if "onnxruntime" in native else target.onnx,
        libtorch="pytorch" in native,
        backends=(target.backends or frozenset()) | native,
    )


def image_targets() -> tuple[Target, ...]:
    """Return the targets for all known images, newest first."""
    return tuple(image_target(release) for release in sorted(RELEASES, reverse=True))


def check(facts: ModelFacts, target: Target) -> TargetReport:
    """Return whether a version loads on a target."""
    failed = tuple(_failures(facts, target))
    missing = () if failed else tuple(_missing(facts, target))
    loads = Loads.NO if failed else Loads.UNKNOWN if missing else Loads.YES
    return TargetReport(target=target.name, runs=target.runs, loads=loads, reasons=failed or missing)


def check_all(facts: ModelFacts, targets: Iterable[Target]) -> tuple[TargetReport, ...]:
    """Return whether a version loads on each target."""
    return tuple(check(facts, target) for target in targets)


def _failures(facts: ModelFacts, target: Target) -> Iterator[str]:
    """Yield why a version does not load."""
    backend = facts.backend or facts.format.backend
    if not facts.format.runs:
        yield f"Triton does not run {facts.format.value}; convert it"
        return
    if facts.unservable is not None:
        yield facts.unservable
        return
    if target.backends is not None and backend not in target.backends and backend != ENSEMBLE:
        yield f"it has no backend {backend}"
        return
    if backend == "onnxruntime" and target.onnx is not None:
        yield from _onnx_failures(facts, target.onnx)
    if facts.format is Format.TORCHSCRIPT and target.libtorch:
        yield from _libtorch_failures(facts)


def _missing(facts: ModelFacts, target: Target) -> Iterator[str]:
    """Yield the facts without which it is unknown whether a version loads."""
    if "onnxruntime" in (facts.backend, facts.format.backend):
        yield from _onnx_missing(facts, target)
    elif facts.format is Format.TRITON:
        if target.backends is None and facts.backend != ENSEMBLE:
            yield f"it is unknown whether it has the backend {facts.backend}"
    elif target.libtorch is None:
        yield "it is unknown which PyTorch backend the server has"
    elif target.libtorch:
        if facts.signature is None:
            yield "its inputs and outputs are unknown"
        if facts.arguments is None or facts.returns is None:
            yield "the types of forward were not recorded when the version was published"


def _onnx_failures(facts: ModelFacts, limits: OnnxLimits) -> Iterator[str]:
    runtime = f"ONNX Runtime {limits.runtime}"
    if facts.ir_version is not None and facts.ir_version > limits.ir_version:
        yield f"its ONNX IR version is {facts.ir_version}, and {runtime} loads up to {limits.ir_version}"
    for domain, opset in sorted((facts.opsets or {}).items()):
        newest = limits.opsets.get(domain)
        if newest is not None and opset > newest:
            yield f"its opset of {domain} is {opset}, and {runtime} loads up to {newest}"


def _onnx_missing(facts: ModelFacts, target: Target) -> Iterator[str]:
    if target.onnx is None:
        yield "it is unknown which files the server's ONNX Runtime loads"
        return
    if facts.ir_version is None or not facts.opsets:
        yield "the IR version and the opsets were not recorded when the version was published"
        return
    others = sorted(domain for domain in facts.opsets if domain not in target.onnx.opsets)
    if others and target.libtorch is not False:
        yield f"its operators of {', '.join(others)} were not compared with those of ONNX Runtime {target.onnx.runtime}"
    if target.libtorch is not False and any(one.dtype is DataType.BF16 for one in _tensors(facts.signature)):
        yield "it is unknown whether Triton's ONNX Runtime backend passes BF16"


def _libtorch_failures(facts: ModelFacts) -> Iterator[str]:
    who = "Triton's PyTorch backend"
    for spec in _tensors(facts.signature):
        if spec.dtype not in LIBTORCH_TYPES:
            yield f"{spec} has a type that {who} does not pass"
        elif spec.dtype is DataType.BYTES and len(spec.shape) != 1:
            yield f"{spec}: {who} passes strings only with one dimension"
    for spec in facts.signature.outputs if facts.signature else ():
        if not spec.shape:
            yield f"the output {spec} has no dimensions, which {who} refuses"
    arguments = facts.arguments
    if arguments is not None and list(arguments.values()) != [_DICTIONARY]:
        wrong = [f"{name} ({kind})" for name, kind in arguments.items() if kind not in _ARGUMENTS]
        if wrong:
            yield f"forward has arguments that {who} cannot pass: {', '.join(wrong)}"
        elif facts.signature and len(arguments) > len(facts.signature.inputs):
            absent = ", ".join(list(arguments)[len(facts.signature.inputs) :])
            yield f"forward takes {absent}, which the signature lacks, and {who} uses no default values"
    wrong = [kind for kind in facts.returns or () if kind not in _ARGUMENTS]
    if wrong:
        yield f"forward returns {', '.join(wrong)}, and {who} returns only a Tensor, a List[str] or a tuple of those"


def _tensors(signature: Signature | None) -> tuple[TensorSpec, ...]:
    return (*signature.inputs, *signature.outputs) if signature else ()


def groups(reports: Iterable[TargetReport]) -> Iterator[tuple[str, TargetReport]]:
    """Yield the reports with a title each; consecutive images with the same verdict become one, titled with both ends.

    A group has the reasons of its first image, which is the newest one if the reports are sorted by `image_targets`.
    """
    for _, grouped in groupby(reports, key=_group):
        first, *others = grouped
        count = f" ({len(others) + 1} releases)"
        yield (f"{others[-1].target} to {first.target}{count}" if others else first.target), first


def _group(report: TargetReport) -> tuple[str, Loads]:
    return ("" if _IMAGE.fullmatch(report.target) else report.target), report.loads


def summary(reports: Iterable[TargetReport]) -> str:
    """Return on which targets a version loads, as one sentence."""
    found: dict[Loads, list[str]] = {}
    for title, report in groups(reports):
        found.setdefault(report.loads, []).append(title)
    words = {Loads.YES: "loads on", Loads.NO: "does not load on", Loads.UNKNOWN: "unknown for"}
    return "; ".join(f"{text} {', '.join(found[loads])}" for loads, text in words.items() if loads in found)
