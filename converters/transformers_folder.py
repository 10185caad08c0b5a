"""What a model folder of Hugging Face transformers says about itself, read without running any of its code."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

_MAX_JSON_BYTES = 16 * 1024**2
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_OTHER_MODELS = (".onnx", ".pt", ".pt2", ".ts", ".jit")
_TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForImageClassification": "image-classification",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForConditionalGeneration": "text2text-generation",
    "Model": "feature-extraction",
}
"""Task by the end of the architecture's name."""


@dataclass(frozen=True, slots=True)
class TransformersFolder:
    """Facts about a model folder.

    Attributes:
        model_type: The family of the model, as ``bert``.
        architecture: The class that was saved, as ``BertForMaskedLM``; empty if unknown.
        task: What the model does, by its architecture; empty if unknown.
        weights: The file of the weights, or their index.
        tokenizer: Whether the folder has a tokenizer.
        own_code: Whether the model comes with Python code of its own.
    """

    model_type: str
    architecture: str
    task: str
    weights: str
    tokenizer: bool
    own_code: bool

    @property
    def attributes(self) -> dict[str, JsonValue]:
        """The facts for the manifest."""
        return {
            "model_type": self.model_type,
            "architecture": self.architecture,
            "task": self.task,
            "weights": self.weights,
            "tokenizer": self.tokenizer,
        }


@dataclass(frozen=True, slots=True)
class SentencePooling:
    """How a sentence-transformers model makes one vector of a text's token vectors.

    Attributes:
        mode: ``mean``, ``cls`` or ``max``.
        normalize: Whether the vector is scaled to length 1.
    """

    mode: str
    normalize: bool


def read_transformers_folder(folder: Path) -> TransformersFolder | None:
    """Return the facts about a model folder; None if it is not one, or contains an exported model as well."""
    if not folder.is_dir():
        return None
    config = _json(folder / "config.json")
    weights = next((name for name in _WEIGHTS if (folder / name).is_file()), None)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str) or weights is None:
        return None
    if any(file.suffix.lower() in _OTHER_MODELS for file in folder.iterdir() if file.is_file()):
        return None
    architectures = config.get("architectures")
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    task = next((task for end, task in _TASKS.items() if architecture.endswith(end)), "")
    tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"))
    return TransformersFolder(
        config["model_type"], architecture, task, weights, tokenizer, bool(config.get("auto_map"))
    )


def sentence_pooling(folder: Path) -> tuple[SentencePooling | None, str]:
    """Return the pooling of a sentence-transformers model, or the reason why it has none that is known here."""
    modules = _json(folder / "modules.json")
    if not isinstance(modules, list):
        return None, ""
    kinds = [(str(module.get("type", "")).rpartition(".")[2], str(module.get("path", ""))) for module in modules]
    names = [kind for kind, _ in kinds]
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        return None, f"its modules are {', '.join(names)}; only Transformer, Pooling and Normalize are known"
    pooling = _json(folder / kinds[1][1] / "config.json")
    if not isinstance(pooling, dict):
        return None, "its pooling has no configuration"
    modes = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}
    chosen = [str(pooling["pooling_mode"])] if "pooling_mode" in pooling else []
    for key, value in pooling.items():
        if key.startswith("pooling_mode_") and value is True:
            name = key.removeprefix("pooling_mode_")
            chosen.append(modes.get(name, name))
    if len(chosen) != 1 or chosen[0] not in modes.values():
        return None, f"its pooling is {' and '.join(chosen) or 'unknown'}; only mean, cls or max is known"
    return SentencePooling(chosen[0], "Normalize" in names), ""


def _json(path: Path) -> Any:
    try:
        content = path.read_bytes() if path.stat().st_size <= _MAX_JSON_BYTES else b""
        return json.loads(content)
    except (OSError, ValueError, RecursionError):
        return None
