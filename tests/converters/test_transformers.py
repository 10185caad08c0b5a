"""Model folders of Hugging Face: what is read from them, and a real model from the cache to the same embeddings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from controlplane.domain.manifest import Format
from controlplane.errors import ConversionFailedError
from converters.inspect import inspect_artifact
from converters.jobs import ConvertJob
from converters.options import ConversionOptions
from converters.transformers_folder import SentencePooling, read_transformers_folder, sentence_pooling


def model_folder(folder: Path, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    settings = {"model_type": "bert", "architectures": ["BertModel"], **config}
    (folder / "config.json").write_text(json.dumps(settings))
    save_file({"weight": np.zeros((2, 2), np.float32)}, folder / "model.safetensors")
    return folder


def test_model_folder_is_recognized(tmp_path: Path) -> None:
    found = inspect_artifact(model_folder(tmp_path, architectures=["BertForQuestionAnswering"]))
    assert (found.format, found.main_file) == (Format.TRANSFORMERS, "config.json")
    assert found.attributes["task"] == "question-answering"
    assert found.attributes["tokenizer"] is False
    # A factory builds the module, so the weights alone count.
    assert inspect_artifact(tmp_path, format=Format.PYTORCH).format is Format.PYTORCH


def test_folder_with_another_model_is_not_a_transformers_model(tmp_path: Path) -> None:
    model_folder(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert read_transformers_folder(tmp_path) is None
    (tmp_path / "model.onnx").unlink()
    assert read_transformers_folder(tmp_path) is not None
    (tmp_path / "config.json").write_text("[1]")
    assert read_transformers_folder(tmp_path) is None


@pytest.mark.parametrize(
    ("pooling", "modules", "expected", "why"),
    [
        ({"pooling_mode_mean_tokens": True}, ["Pooling", "Normalize"], SentencePooling("mean", True), ""),
        ({"pooling_mode": "cls"}, ["Pooling"], SentencePooling("cls", False), ""),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, ["Pooling"], None, "mean and max"),
        ({"pooling_mode_lasttoken": True}, ["Pooling"], None, "lasttoken"),
        ({"pooling_mode": "mean"}, ["Pooling", "Dense"], None, "Transformer, Pooling, Dense"),
    ],
)
def test_pooling_is_read(
    pooling: dict[str, Any], modules: list[str], expected: SentencePooling | None, why: str, tmp_path: Path
) -> None:
    kinds = [{"type": f"sentence_transformers.models.{kind}", "path": kind} for kind in ("Transformer", *modules)]
    (tmp_path / "modules.json").write_text(json.dumps(kinds))
    (tmp_path / "Pooling").mkdir()
    (tmp_path / "Pooling" / "config.json").write_text(json.dumps(pooling))
    found, reason = sentence_pooling(tmp_path)
    assert found == expected
    assert why in reason
    assert sentence_pooling(tmp_path / "Pooling") == (None, "")


def test_missing_package_is_named(do: Any, tmp_path: Path) -> None:
    job = ConvertJob(
        source=model_folder(tmp_path / "model"),
        options=ConversionOptions(target=Format.ONNX),
        output_dir=tmp_path / "out",
    )
    try:
        import transformers  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(ConversionFailedError, match=r"pip install 'triton-control-plane\[hf\]'"):
            do(job)
    else:
        pytest.skip("transformers is installed")
