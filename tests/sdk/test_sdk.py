"""The Python client: from an object in a process to answers, and back."""

from pathlib import Path

import numpy as np
import onnx
import pytest

import tritonctl
from controlplane import errors
from tests.cli.conftest import Cli
from tests.support.models import affine_onnx

pytestmark = pytest.mark.triton
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture(scope="package")
def scaled(client: tritonctl.Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with two versions, y = 2x and y = 3x, the second active and the first in its bake window."""
    folder = tmp_path_factory.mktemp("scaled")
    for scale in (2.0, 3.0):
        proto = onnx.load(affine_onnx(folder / "net.onnx", scale=scale))
        version = client.push(proto, "scaled", {"x": ROWS}, metrics={"scale": scale}, labels={"kind": "test"})
        version.deploy().wait(300)
    return "scaled"


def test_onnx_proto_is_pushed_deployed_and_answers(client: tritonctl.Client, scaled: str) -> None:
    version = client.version(scaled)
    assert (version.reference, version.metrics, version.parity) == ("scaled:2", {"scale": 3.0}, None)
    assert version.manifest.golden is not None
    deployment = client.deployment(scaled)
    assert (deployment.phase, deployment.active_version) == ("Ready", 2)
    for via in ("api", "gateway", "auto"):
        answer = client.infer(scaled, {"x": ROWS.tolist()}, via=via)  # type: ignore[arg-type]
        np.testing.assert_allclose(answer["y"], 3 * ROWS)
    np.testing.assert_allclose(client.infer(scaled, ROWS, version=1, via="api")["y"], 2 * ROWS)
    many = np.arange(21 * 4, dtype=np.float32).reshape(21, 4)  # three requests of at most 8 rows
    np.testing.assert_allclose(client.infer(scaled, many)["y"], 3 * many)


def test_pictures_for_a_notebook(client: tritonctl.Client, scaled: str) -> None:
    version = client.version(f"{scaled}:1")
    assert "scaled:1" in version._repr_html_()
    assert "x FP32[?,4]" in version._repr_html_()
    assert "Ready" in client.deployment(scaled)._repr_html_()
    metrics = client.metrics(scaled)
    assert "per second" in metrics._repr_html_()
    svg = metrics.plot()._repr_svg_()
    assert svg.startswith("<svg")
    assert svg.count("<g transform") == 3


def test_versions_are_compared_with_their_answers(client: tritonctl.Client, scaled: str) -> None:
    compared = client.compare(f"{scaled}:1", client.version(f"{scaled}:2"), {"x": ROWS})
    assert compared.same_signature
    assert compared.largest_difference == {"y": 7.0}
    assert ("metric scale", "2", "3") in compared.rows()
    assert "largest difference" in compared._repr_html_()


def test_rollback_waits_for_the_earlier_version(client: tritonctl.Client, scaled: str) -> None:
    assert client.rollback(scaled, reason="test").active_version == 1
    np.testing.assert_allclose(client.infer(scaled, ROWS)["y"], 2 * ROWS)
    assert client.rollback(scaled).active_version == 2


def test_errors_of_the_api_have_the_classes_of_the_tree(client: tritonctl.Client, scaled: str) -> None:
    with pytest.raises(errors.NotFoundError, match="does not exist") as caught:
        client.version("nothing")
    assert isinstance(caught.value, tritonctl.ClientError)
    assert (caught.value.code, caught.value.status, type(caught.value).__name__) == ("not-found", 404, "NotFoundError")
    with pytest.raises(errors.InvalidReferenceError):
        client.version("a:b:c")
    with pytest.raises(errors.InvalidInputError, match="max_batch_size"):
        client.deploy(scaled, settings={"max_batch_size": -1})
    with pytest.raises(tritonctl.NotRunningError):
        tritonctl.connect("http://127.0.0.1:9", progress=False).version("nothing")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"z": ROWS}, "missing: x"),
        ({"x": ROWS, "z": ROWS}, "unknown: z"),
        (ROWS[:, :3], r"shape \[2, 3\]; the model takes x FP32\[\?,4\]"),
        ({"x": ROWS.astype(str)}, "x"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    client: tritonctl.Client, scaled: str, inputs: object, message: str
) -> None:
    with pytest.raises(errors.InvalidInputError, match=message):
        client.infer(scaled, inputs)


def test_path_is_pushed_under_its_name(client: tritonctl.Client, tmp_path: Path) -> None:
    path = affine_onnx(tmp_path / "from path.onnx", scale=5.0)
    assert client.push(path, aliases=["first"]).reference == "from-path:1"
    assert client.version("from-path@first").number == 1
    assert "from-path" in [one.name for one in client.models()]


async def test_asynchronous_client_has_the_same_methods(cli: Cli, scaled: str) -> None:
    async with tritonctl.connect_async(data_dir=cli.data_dir) as client:
        version = await client.version(f"{scaled}:2")
        assert version.reference == "scaled:2"
        answer = await client.infer(scaled, ROWS, version=2, via="api")
        np.testing.assert_allclose(answer["y"], 3 * ROWS)
        assert scaled in [one.model for one in await client.deployments()]
    face = {name for name in vars(tritonctl.Client) if not name.startswith("_")} - {"url", "close"}
    assert face <= {*vars(tritonctl.AsyncClient)}


@pytest.mark.slow
def test_torch_module_is_converted_with_its_parity(client: tritonctl.Client) -> None:
    import torch

    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    example = torch.randn(1, 4)
    version = client.push(net, "torch-net", example, labels={"kind": "test"})
    assert version.manifest.format == "onnx"
    assert version.manifest.lineage is not None
    assert version.manifest.lineage.source == "torch-net:1"
    assert version.parity is not None
    assert all(one.agrees for one in version.parity.outputs)
    assert "parity with the original" in version._repr_html_()
    assert version.signature is not None
    assert version.signature.batched
    version.deploy().wait(300)
    rows = torch.randn(5, 4)
    (answer,) = client.infer("torch-net", rows).values()
    np.testing.assert_allclose(answer, net(rows).detach().numpy(), atol=1e-5)
    assert net.training, "the module was left in evaluation mode"


def test_scikit_learn_estimator_is_converted(client: tritonctl.Client) -> None:
    from sklearn.linear_model import LogisticRegression

    rows = np.random.default_rng(0).normal(size=(40, 3))
    model = LogisticRegression().fit(rows, rows.sum(axis=1) > 0)
    version = client.push(model, "sklearn-net", rows[:5])
    assert version.parity is not None
    assert version.signature is not None
    assert [spec.name for spec in version.signature.inputs] == ["X"]
