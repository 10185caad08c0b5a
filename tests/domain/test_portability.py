"""Which versions load on which Triton servers, by recorded facts."""

from itertools import pairwise
from pathlib import Path

import onnxruntime
import pytest
from onnx import TensorProto, helper
from pydantic import JsonValue

from controlplane.domain.advisories import release_of
from controlplane.domain.manifest import FileEntry, Format, Manifest
from controlplane.domain.portability import (
    Loads,
    ModelFacts,
    Target,
    check,
    check_all,
    embedded_target,
    groups,
    image_target,
    image_targets,
    summary,
)
from controlplane.domain.signature import DataType, Signature, TensorSpec
from controlplane.domain.triton_releases import ONNX, ONNX_ML, RELEASES, limits_of_release, limits_of_runtime
from controlplane.servers.server import ManagedServer
from controlplane.servers.target import target_of
from controlplane.triton.client import TritonClient
from controlplane.triton.repository import ModelRepository


def onnx_facts(ir_version: int = 8, **opsets: int) -> ModelFacts:
    attributes: dict[str, JsonValue] = {"ir_version": ir_version, "opsets": {"ai.onnx": 17, **opsets}}
    return ModelFacts.of(Format.ONNX, attributes, tensors(("x", "FP32", (-1,)), ("y", "FP32", (-1,))))


def tensors(*specs: tuple[str, str, tuple[int, ...]]) -> Signature:
    found = [TensorSpec(name=name, dtype=DataType(dtype), shape=shape) for name, dtype, shape in specs]
    return Signature(inputs=tuple(found[:-1]), outputs=tuple(found[-1:]))


def torch_facts(
    arguments: dict[str, str] | None = None,
    returns: list[str] | None = None,
    signature: Signature | None = None,
) -> ModelFacts:
    recorded: dict[str, JsonValue] = {
        "arguments": {**(arguments or {"x": "Tensor"})},
        "returns": [*(returns or ["Tensor"])],
    }
    found = signature or tensors(("x", "FP32", (-1, 3)), ("OUTPUT__0", "FP32", (-1, 3)))
    return ModelFacts.of(Format.TORCHSCRIPT, recorded, found)


@pytest.mark.parametrize(
    ("facts", "release", "reason"),
    [
        (onnx_facts(), "24.04", None),
        (onnx_facts(9), "24.04", None),
        (onnx_facts(10), "24.04", "its ONNX IR version is 10, and ONNX Runtime 1.17.3 loads up to 9"),
        (onnx_facts(10), "24.05", None),
        (onnx_facts(**{"ai.onnx": 23}), "25.07", "its opset of ai.onnx is 23, and ONNX Runtime 1.22.0 loads up to 22"),
        (onnx_facts(**{"ai.onnx": 23}), "25.09", None),
        (onnx_facts(**{ONNX_ML: 5}), "24.04", "its opset of ai.onnx.ml is 5, and ONNX Runtime 1.17.3 loads up to 4"),
        (onnx_facts(**{ONNX_ML: 5}), "24.05", None),
    ],
)
def test_onnx_versions_are_compared_with_the_onnx_runtime_of_an_image(
    facts: ModelFacts, release: str, reason: str | None
) -> None:
    found = check(facts, image_target(release))
    assert (found.loads, found.reasons) == ((Loads.NO, (reason,)) if reason else (Loads.YES, ()))


@pytest.mark.parametrize(
    ("facts", "release", "words"),
    [
        (onnx_facts(), "25.08", "it is unknown which files the server's ONNX Runtime loads"),
        (onnx_facts(), "99.01", "it is unknown which files the server's ONNX Runtime loads"),
        (onnx_facts(**{"com.microsoft": 1}), "25.09", "its operators of com.microsoft were not compared"),
        (ModelFacts(Format.ONNX), "25.09", "were not recorded when the version was published"),
        (ModelFacts.of(Format.TORCHSCRIPT, {}, None), "25.09", "its inputs and outputs are unknown"),
    ],
)
def test_a_missing_fact_is_unknown_and_never_a_refusal(facts: ModelFacts, release: str, words: str) -> None:
    found = check(facts, image_target(release))
    assert found.loads is Loads.UNKNOWN
    assert words in found.reasons[0]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (torch_facts(signature=tensors(("x", "BF16", (-1,)), ("OUTPUT__0", "FP32", (-1,)))), "x BF16"),
        (torch_facts(signature=tensors(("x", "BYTES", (-1, 2)), ("y", "FP32", (-1,)))), "only with one dimension"),
        (
            torch_facts(signature=tensors(("x", "FP32", (-1,)), ("y", "FP32", ()))),
            "the output y FP32[] has no dimensions",
        ),
        (
            torch_facts({"x": "Tensor", "n": "int"}),
            "forward has arguments that Triton's PyTorch backend cannot pass: n",
        ),
        (torch_facts({"x": "Tensor", "name": "str"}), "name (str)"),
        (torch_facts({"x": "Tensor", "y": "Tensor"}), "forward takes y, which the signature lacks"),
        (torch_facts(returns=["Dict[str, Tensor]"]), "forward returns Dict[str, Tensor]"),
    ],
)
def test_libtorch_refuses_what_the_embedded_backend_runs(facts: ModelFacts, words: str) -> None:
    native = check(facts, image_target("25.09"))
    assert native.loads is Loads.NO
    assert words in native.reasons[0]
    assert check(facts, embedded_target({"pytorch": "2.13.0"})).loads is Loads.YES


@pytest.mark.parametrize(
    "facts",
    [
        torch_facts(),
        torch_facts({"texts": "List[str]"}, ["List[str]"], tensors(("texts", "BYTES", (-1,)), ("y", "BYTES", (-1,)))),
        torch_facts({"named": "Dict[str, Tensor]"}, ["Tensor", "Tensor"]),
    ],
)
def test_libtorch_runs_tensors_strings_and_one_dictionary(facts: ModelFacts) -> None:
    assert check(facts, image_target("25.09")).loads is Loads.YES


def test_a_server_without_the_backend_or_an_unservable_version_is_refused_everywhere() -> None:
    assert check(onnx_facts(), embedded_target({"pytorch": "2.13.0"})).reasons == ("it has no backend onnxruntime",)
    assert check(ModelFacts(Format.SKLEARN), image_target("25.09")).reasons == (
        "Triton does not run sklearn; convert it",
    )
    unservable = ModelFacts(Format.ONNX, unservable="output 'y' is a sequence")
    assert {one.loads for one in check_all(unservable, image_targets())} == {Loads.NO}


def test_the_manifest_of_an_earlier_release_gives_no_facts() -> None:
    entry = FileEntry(path="model.pt", sha256="0" * 64, size_bytes=1)
    facts = ModelFacts.of_manifest(Manifest(format=Format.TORCHSCRIPT, files=(entry,)))
    assert (facts.arguments, facts.returns, facts.opsets, facts.ir_version) == (None, None, None, None)
    damaged = Manifest(
        format=Format.ONNX, files=(entry,), attributes={"ir_version": "8", "opsets": [1], "arguments": 3}
    )
    assert ModelFacts.of_manifest(damaged) == ModelFacts(Format.ONNX)


def test_consecutive_images_with_one_verdict_share_a_title() -> None:
    found = check_all(onnx_facts(11), (embedded_target({"onnxruntime": "1.23.2"}), *image_targets()))
    titles = [(title, one.loads) for title, one in groups(found)]
    assert titles[0] == ("embedded", Loads.YES)
    assert [loads for _, loads in titles[1:]] == [Loads.YES, Loads.NO]
    assert titles[2][0].startswith("24.04 to 25.07 (")
    assert summary(found).startswith("loads on embedded, 25.09 to ")


def test_every_listed_onnx_runtime_was_measured_and_newer_ones_load_no_less() -> None:
    limits = [limits_of_release(release) for release in sorted(RELEASES)]
    known = [one for one in limits if one is not None]
    assert len(known) == len(RELEASES)
    numbers = [(one.ir_version, one.opsets[ONNX], one.opsets[ONNX_ML]) for one in known]
    for older, newer in pairwise(numbers):
        assert all(before <= after for before, after in zip(older, newer, strict=True))


def test_the_limits_of_the_installed_onnx_runtime_hold() -> None:
    limits = limits_of_runtime(onnxruntime.__version__)
    if limits is None:
        pytest.skip(f"onnxruntime {onnxruntime.__version__} has not been measured")
    newest = dict(limits.opsets)
    assert _loads(limits.ir_version, newest)
    assert not _loads(limits.ir_version + 1, newest)
    for domain, opset in newest.items():
        assert not _loads(limits.ir_version, {**newest, domain: opset + 1}), domain


def _loads(ir_version: int, opsets: dict[str, int]) -> bool:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    imports = [helper.make_opsetid(domain, opset) for domain, opset in opsets.items()]
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir_version)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001 - onnxruntime raises several types
        return False
    return True


@pytest.mark.parametrize(
    ("image", "version", "runtime"),
    [
        ("", "2.61.0", "1.23.0"),
        ("25.03", "2.61.0", "1.21.0"),
        ("24.10", "2.51.0", "1.19.2"),
        ("", "2.51.0", None),  # the wheel nvidia-pytriton has this version too
        ("", "", None),
        ("other", "2.61.0", None),
    ],
)
async def test_a_server_is_judged_by_its_version_unless_its_image_is_declared(
    tmp_path: Path, image: str, version: str, runtime: str | None
) -> None:
    client = TritonClient("gpu-1", "127.0.0.1:1")
    server = ManagedServer("gpu-1", client, ModelRepository(tmp_path), image=image)
    target = target_of(server, version)
    assert (target.name, target.onnx.runtime if target.onnx else None) == ("gpu-1", runtime)
    assert release_of("2.61.0") == "25.09"
    await client.close()


def test_a_target_about_which_nothing_is_known_refuses_nothing() -> None:
    nothing = Target("gpu-1", "a Triton of an unknown version")
    assert {check(facts, nothing).loads for facts in (onnx_facts(99), torch_facts({"n": "int"}))} == {Loads.UNKNOWN}
