"""Objects of other libraries, written to files: no control plane is needed for that."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from controlplane.domain.manifest import Format
from controlplane.errors import ConversionFailedError, InvalidInputError
from converters.inspect import inspect_artifact
from converters.objects import save_object
from tests.support.models import affine_onnx


def test_scripted_module_keeps_its_arguments_names(tmp_path: Path) -> None:
    import torch

    class Net(torch.nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return left + right

    pair = (torch.ones(2, 3), torch.ones(2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript
        scripted = torch.jit.script(Net())
    saved = save_object(scripted, pair, tmp_path)
    assert saved.format is Format.TORCHSCRIPT
    assert {name: array.shape for name, array in saved.samples.items()} == {"left": (2, 3), "right": (2, 3)}


def test_module_gets_a_dynamic_batch_from_an_example_of_one_row(tmp_path: Path) -> None:
    import torch

    saved = save_object(torch.nn.Linear(4, 2), np.ones((1, 4), np.float32), tmp_path)
    assert saved.samples["input"].shape == (2, 4)
    program = torch.export.load(saved.path)
    assert program.module()(torch.ones(7, 4)).shape == (7, 2)


def test_boosters_are_written_as_their_own_files(tmp_path: Path) -> None:
    import lightgbm
    import xgboost

    rows, target = np.random.default_rng(0).normal(size=(30, 3)), np.arange(30) % 2
    models: list[tuple[Any, Format]] = [
        (xgboost.XGBClassifier(n_estimators=2).fit(rows, target), Format.XGBOOST),
        (lightgbm.LGBMClassifier(n_estimators=2, verbose=-1).fit(rows, target), Format.LIGHTGBM),
    ]
    for number, (model, kind) in enumerate(models):
        folder = tmp_path / str(number)
        folder.mkdir()
        saved = save_object(model, rows[:2], folder)
        assert saved.format is kind
        assert saved.samples["X"].dtype == np.float32
        with pytest.raises(InvalidInputError, match=r"\[rows, 3\]"):
            save_object(model, rows[:2, :2], folder)


def test_onnx_inputs_are_named_without_the_weights(tmp_path: Path) -> None:
    proto = onnx.load(affine_onnx(tmp_path / "net.onnx", scale=2.0))
    folder = tmp_path / "out"
    folder.mkdir()
    saved = save_object(proto, np.ones((1, 4), np.float32), folder)
    assert list(saved.samples) == ["x"]
    assert inspect_artifact(saved.path).format is Format.ONNX


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (None, "needs example_inputs"),
        ({"other": np.ones((2, 4))}, "name other; the model's inputs: input"),
        ((np.ones((2, 4)), np.ones((2, 4))), "2 example_inputs, and the model has 1 inputs"),
    ],
)
def test_examples_that_do_not_fit_are_refused(examples: object, message: str, tmp_path: Path) -> None:
    import torch

    with pytest.raises(InvalidInputError, match=message):
        save_object(torch.nn.Linear(4, 2), examples, tmp_path)


def test_module_that_cannot_be_exported_is_refused_in_one_sentence(tmp_path: Path) -> None:
    import torch

    class Branching(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(ConversionFailedError, match="cannot export this Branching"):
        save_object(Branching(), torch.ones(2, 4), tmp_path)


def test_other_objects_are_refused_with_what_is_possible(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"builtins\.dict; give a path or one of: torch\.jit\.ScriptModule"):
        save_object({}, None, tmp_path)
