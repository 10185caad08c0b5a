"""Small real models of every format, created once per run, and a way to run jobs in the test's process."""

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.jobs import Job, Outcome
from converters.results import read_result
from converters.working import execute

FACTORIES = '''
import torch
from torch import nn


class Mlp(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.one, self.two = nn.Linear(6, hidden), nn.Linear(hidden, 3)

    def forward(self, features):
        return torch.softmax(self.two(torch.relu(self.one(features))), -1)


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, image):
        return self.head(torch.relu(self.norm(self.conv(image))).mean((2, 3)))


class Block(nn.Module):
    """A transformer block over token ids: two inputs that share two dynamic dimensions, a dict of outputs."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(100, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, ids, mask):
        hidden = self.layer(self.embed(ids), src_key_padding_mask=mask == 0)
        return {"logits": self.head(hidden), "pooled": hidden.mean(1)}


class Gate(nn.Module):
    """Its path depends on its values: tracing freezes one, scripting keeps both."""

    def forward(self, x):
        if bool(x.sum() > 0):
            return x * 2
        return -x


class Scaled(nn.Module):
    def forward(self, x, factor: int):
        return x * factor, x + factor


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def _seeded(kind, *arguments):
    torch.manual_seed(7)
    return kind(*arguments).eval()


def mlp(hidden=12):
    return _seeded(Mlp, hidden)


def conv():
    return _seeded(ConvNet)


def block():
    return _seeded(Block)


def gate():
    return Gate()


def not_a_module():
    return 3
'''


@pytest.fixture(scope="session")
def factories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the import path with the module ``converter_nets``."""
    folder = tmp_path_factory.mktemp("factories")
    (folder / "converter_nets.py").write_text(FACTORIES)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def mlp_onnx(batch: str | int | None = "batch", *, opset: int = 17) -> onnx.ModelProto:
    """Return ``y = relu(x @ w + b)`` as a graph that is built by hand, so that no exporter takes part."""
    random = np.random.default_rng(3)
    weights = numpy_helper.from_array(random.standard_normal((4, 3)).astype(np.float32), "w")
    bias = numpy_helper.from_array(random.standard_normal(3).astype(np.float32), "b")
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["xw"]),
            helper.make_node("Add", ["xw", "b"], ["sum"]),
            helper.make_node("Relu", ["sum"], ["y"]),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [weights, bias],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="hand")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, factories: Path) -> SimpleNamespace:
    """Paths of small models in every supported format."""
    folder = tmp_path_factory.mktemp("models")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _write_models(folder)


def _write_models(folder: Path) -> SimpleNamespace:
    import converter_nets as nets
    import skops.io
    import torch
    from safetensors.torch import save_file
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    made = SimpleNamespace(folder=folder)

    def put(name: str) -> Path:
        path = folder / name
        setattr(made, name.replace(".", "_"), path)
        return path

    onnx.save_model(mlp_onnx(), put("mlp.onnx"))
    external = folder / "external"
    external.mkdir()
    onnx.save_model(
        mlp_onnx(), external / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    made.external = external

    mlp, block, conv = nets.mlp(), nets.block(), nets.conv()
    torch.jit.trace(mlp, torch.randn(2, 6)).save(str(put("mlp.ts")))
    torch.jit.script(nets.Gate()).save(str(put("gate.ts")))
    torch.jit.script(nets.Scaled()).save(str(put("scaled.ts")))
    torch.jit.script(nets.Noise()).save(str(put("noise.ts")))
    dynamic = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(mlp, (torch.randn(2, 6),), dynamic_shapes=dynamic), put("mlp.pt2"))
    save_file(mlp.state_dict(), put("mlp.safetensors"))
    torch.save(block.state_dict(), put("block.pt"))
    torch.save(conv.state_dict(), put("conv.pt"))
    torch.save(mlp.state_dict(), put("legacy.pt"), _use_new_zipfile_serialization=False)
    torch.save(mlp, put("whole.pt"))

    table, target = load_iris(return_X_y=True)
    table = table.astype(np.float32)
    names = np.array(["setosa", "versicolor", "virginica"])[target]
    forest = RandomForestClassifier(8, random_state=0)
    skops.io.dump(make_pipeline(StandardScaler(), forest).fit(table, names), put("iris.skops"))
    skops.io.dump(LinearRegression().fit(table, target), put("line.skops"))
    skops.io.dump(StandardScaler().fit(table), put("scaler.skops"))
    return made


@pytest.fixture
def do():
    """Run a job in this process, through the documents that cross the process boundary."""

    def run(job: Job):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome: Outcome = execute(job, lambda _event: None)
        return read_result(job, outcome.document, outcome.samples, "")

    return run
