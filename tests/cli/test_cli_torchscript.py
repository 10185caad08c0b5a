"""TorchScript from push to inference: a push reports unservable modules, and served ones answer as recorded."""

from pathlib import Path

import numpy as np
import pytest

from tests.cases.torchscript_inputs import X, write
from tests.cli.conftest import Cli

pytestmark = [pytest.mark.triton, pytest.mark.slow]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "x.npz"
    np.savez(path, x=X)
    return path


def test_dictionary_output_is_refused_at_deploy_until_converted(cli: Cli, samples: Path, tmp_path: Path) -> None:
    pushed = cli.ok("push", "named", write(tmp_path, "dict-output"), "--samples", samples)
    assert "Triton cannot serve this version: forward returns Dict[str, Tensor]" in pushed.err
    assert "no, because forward returns Dict[str, Tensor]" in " ".join(cli.ok("show", "named:1").out.split())
    refused = cli("deploy", "named:1", "--wait")
    assert refused.code == 6
    assert "convert this version to torchscript" in refused.err
    cli.ok("convert", "named:1", "--to", "torchscript")
    cli.ok("deploy", "named:2", "--wait")
    answer = cli.ok("infer", "named", "--input", samples, "-o", "json").json
    outputs = {output["name"]: np.reshape(output["data"], output["shape"]) for output in answer["outputs"]}
    np.testing.assert_array_equal(outputs["logits__0"], X * 2)
    np.testing.assert_array_equal(outputs["mask__1"], X > 0)
    cli.ok("undeploy", "named")


def test_push_and_deploy_suggest_options_when_signature_is_missing(cli: Cli, tmp_path: Path) -> None:
    source = write(tmp_path, "no-signature")
    advice = '--input "a:FP32[-1,3]" --input "b:FP32[-1,3]" --out "OUTPUT__0:FP32[-1,3]" --out "OUTPUT__1:FP32[-1,3]"'
    for options in ((), ("--no-golden", "--label", "kind=unrecorded")):
        assert advice in " ".join(cli.ok("push", "unsigned", source, *options).err.split())
    refused = cli("deploy", "unsigned:1")
    assert refused.code == 6
    assert advice in refused.err
    assert cli("ps", "unsigned").code == 3


def test_module_in_training_mode_is_reported_and_served(cli: Cli, samples: Path, tmp_path: Path) -> None:
    pushed = cli.ok("push", "trained", write(tmp_path, "training-norm"), "--samples", samples, "--deploy")
    assert "the module was saved in training mode" in pushed.err
    assert "norm" in pushed.err
    assert "proved with 1 golden sample" in pushed.out
    cli.ok("undeploy", "trained")


def test_batched_option_applies_to_a_derived_signature(cli: Cli, samples: Path, tmp_path: Path) -> None:
    cli.ok("push", "rows", write(tmp_path, "doubled"), "--samples", samples, "--batched", "--deploy")
    shown = " ".join(cli.ok("show", "rows:1").out.split())
    assert "x FP32[?,3]" in shown
    assert "batched yes" in shown
    np.savez(tmp_path / "one.npz", x=X[:1])
    assert cli.ok("infer", "rows", "--input", tmp_path / "one.npz", "-o", "json").json["outputs"][0]["shape"] == [1, 3]
    cli.ok("undeploy", "rows")
    refused = cli("push", "rows", write(tmp_path, "dependent-rows"), "--samples", samples, "--batched")
    assert refused.code == 6
    assert "depends on the other rows" in refused.err


def test_failed_conversion_of_a_file_leaves_no_model(cli: Cli, tmp_path: Path) -> None:
    source = write(tmp_path, "doubled")
    failed = cli("convert", source, "--to", "onnx", "--name", "leftover")
    assert failed.code == 6
    assert "deleted the original, leftover:1" in failed.err
    assert cli("show", "leftover").code == 3
    assert "leftover" not in cli.ok("models").out


def test_weights_name_the_options_that_convert_them(cli: Cli, tmp_path: Path) -> None:
    import torch

    torch.save({"weight": torch.ones(2, 2)}, tmp_path / "weights.pt")
    pushed = cli.ok("push", "weights", tmp_path / "weights.pt")
    assert "--factory package.module:function, with --trust" in " ".join(pushed.err.split())
    failed = cli("convert", "weights:1", "--to", "onnx", "--input", "x:FP32[-1,2]")
    assert failed.code == 6
    assert "--factory package.module:function" in failed.err
    assert "--trust" in failed.err


def test_deploy_by_name_uses_newest_servable_version(cli: Cli, doubling: Path, tmp_path: Path) -> None:
    cli.ok("push", "mixed", doubling)
    cli.ok("push", "mixed", write(tmp_path, "no-signature"))
    deployed = cli.ok("deploy", "mixed", "--wait")
    assert "mixed:1 is active" in deployed.out
    assert "skipped mixed:2 (torchscript), which Triton cannot serve" in deployed.err
    assert cli("deploy", "mixed:2").code == 6
    cli.ok("undeploy", "mixed")
