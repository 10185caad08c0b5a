"""Conversion of Hugging Face transformers models to ONNX, with the tokenizer beside the model."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from controlplane.domain.arrays import Array
from controlplane.domain.manifest import Format
from controlplane.domain.samples import Tensors
from controlplane.domain.signature import DYNAMIC, DataType, Signature, TensorSpec
from controlplane.errors import ConversionFailedError, InvalidArtifactError, UntrustedArtifactError
from converters.base import ConversionRequest, SourceModel
from converters.from_torch import ModuleOriginal, ModuleToOnnx
from converters.options import SamplingOptions
from converters.runtimes import THREADS, one_line
from converters.transformers_folder import (
    SentencePooling,
    TransformersFolder,
    read_transformers_folder,
    sentence_pooling,
)

_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "fill-mask": "AutoModelForMaskedLM",
    "image-classification": "AutoModelForImageClassification",
    "feature-extraction": "AutoModel",
}
_OUTPUTS = {
    "question-answering": ("start_logits", "end_logits"),
    "feature-extraction": ("last_hidden_state",),
}
_LOGITS = ("logits",)
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt"),
    *("vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
    *("preprocessor_config.json", "sentence_bert_config.json", "config.json", "README.md"),
)
_TEXTS = (
    "The control plane loads a model when a request needs it.",
    "Is this sentence longer than the other one, and does its answer stay the same in a batch?",
    "Short text.",
    "Numbers such as 3.14159, punctuation (brackets; quotes), and rare words: sphinx, quartz, zephyr.",
    "A model answers the same text with the same numbers.",
    "Yes.",
)
_ROWS = (2, 1, 3)
TEXTS = "texts.json"
"""The texts that the golden samples are from, with their tokens; `tritonctl text-pipeline` reads them."""


class TransformersOriginal(ModuleOriginal):
    """A transformers model with the weights of its folder, in FP32 on the CPU."""

    format = Format.TRANSFORMERS
    batched = True

    def __init__(self, path: Path, *, trust: bool) -> None:
        torch.set_num_threads(THREADS)
        self.path, self.folder = path, path.parent
        facts = read_transformers_folder(self.folder)
        if facts is None:
            raise InvalidArtifactError("the folder is not a model folder of transformers (config.json and weights)")
        if facts.task not in _CLASSES:
            raise ConversionFailedError(
                f"a {facts.architecture or facts.model_type} cannot be converted: its task "
                f"({facts.task or 'unknown'}) is none of {', '.join(_CLASSES)}. Models that generate text need a loop: "
                "serve them with Triton's vLLM or TensorRT-LLM backend, from a model directory"
            )
        model = _load(self.folder, facts, trust=trust)
        pooling, self.without_pooling = sentence_pooling(self.folder)
        outputs = _OUTPUTS.get(facts.task, _LOGITS)
        self._tokenizer = None
        self.texts: list[dict[str, Any]] = []
        """Texts of the suggested inputs, with their tokens."""
        if facts.task == "image-classification":
            self.native: Any = _Vision(model, outputs)
            self.inputs = (_image(model.config),)
        else:
            self._tokenizer = _tokenizer(self.folder, trust=trust) if facts.tokenizer else None
            names = list(getattr(self._tokenizer, "model_input_names", ["input_ids", "attention_mask"]))
            names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in names]
            self.native = _Text(model, outputs, pooling)
            self.inputs = tuple(TensorSpec(name=name, dtype=DataType.INT64, shape=(DYNAMIC, DYNAMIC)) for name in names)
        self.native.eval().requires_grad_(False)
        self._specs = self.inputs
        self._vocabulary = int(getattr(model.config, "vocab_size", 2))
        self.signature = self._observed_signature(self.inputs)

    def _observed_signature(self, inputs: tuple[TensorSpec, ...]) -> Signature:
        """Run the model on two shapes; what differs between the outputs is dynamic."""
        small, large = (self.run(self._probe(inputs, rows, length)) for rows, length in ((2, 5), (3, 7)))
        outputs = [
            TensorSpec(
                name=name,
                dtype=DataType.of(array),
                shape=tuple(a if a == b else DYNAMIC for a, b in zip(array.shape, large[name].shape, strict=True)),
            )
            for name, array in small.items()
        ]
        return Signature(inputs=inputs, outputs=tuple(outputs), batched=True)

    def _probe(self, inputs: tuple[TensorSpec, ...], rows: int, length: int) -> dict[str, Array]:
        """Return valid inputs: ascending tokens without padding, or a gradient as an image."""
        if inputs[0].dtype is DataType.FP32:
            size = (rows, *(224 if side == DYNAMIC else side for side in inputs[0].shape[1:]))
            return {inputs[0].name: np.linspace(-1, 1, int(np.prod(size)), dtype=np.float32).reshape(size)}
        tokens = np.arange(rows * length, dtype=np.int64).reshape(rows, length) % self._vocabulary
        fixed = {"attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}
        return {spec.name: fixed.get(spec.name, tokens) for spec in inputs}

    def suggest_inputs(self, specs: Sequence[TensorSpec], options: SamplingOptions) -> tuple[Tensors, ...]:
        """See `converters.base.SourceModel.suggest_inputs`: texts, as the model's tokenizer gives them."""
        if self._tokenizer is None and specs[0].dtype is DataType.FP32:
            return ()
        if self._tokenizer is None:
            return tuple(self._probe(tuple(specs), rows, 6 + rows) for rows in _ROWS)
        samples, at = [], options.seed
        for number in range(max(options.sample_count, 2)):
            texts = [_TEXTS[(at + row) % len(_TEXTS)] for row in range(_ROWS[number % len(_ROWS)])]
            at += len(texts)
            tokens = self._tokenizer(texts, padding=True, truncation=True, return_tensors="np")
            samples.append({spec.name: tokens[spec.name].astype("int64") for spec in specs})
            self.texts.append({"texts": texts, "input_ids": tokens["input_ids"].tolist()})
        return tuple(samples)


class TransformersToOnnx(ModuleToOnnx):
    """Converter that exports the model with torch.onnx.export and keeps the tokenizer's files in ``tokenizer/``."""

    name = "transformers-to-onnx"
    source = Format.TRANSFORMERS

    def convert(self, original: SourceModel, request: ConversionRequest) -> tuple[str, ...]:
        """See `converters.base.Converter.convert`."""
        assert isinstance(original, TransformersOriginal)
        warnings = super().convert(original, request)
        for name in _TOKENIZER_FILES:
            if (original.folder / name).is_file():
                (request.output.parent / "tokenizer").mkdir(exist_ok=True)
                shutil.copyfile(original.folder / name, request.output.parent / "tokenizer" / name)
        if original.texts:
            (request.output.parent / "tokenizer").mkdir(exist_ok=True)
            (request.output.parent / "tokenizer" / TEXTS).write_text(json.dumps(original.texts), "utf-8")
        if original.without_pooling:
            warnings = (*warnings, f"the result has no sentence embedding: {original.without_pooling}")
        return warnings


class _Text(torch.nn.Module):
    """A model of tokens that returns the named outputs alone."""

    def __init__(self, model: torch.nn.Module, outputs: tuple[str, ...], pooling: SentencePooling | None) -> None:
        super().__init__()
        self.model = model
        self._outputs = outputs
        self._pooling = pooling if outputs == ("last_hidden_state",) else None

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> dict[str, Any]:
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        answer = self.model(input_ids=input_ids, attention_mask=attention_mask, **more)
        found = {name: answer[name] for name in self._outputs}
        if self._pooling is not None:
            found["sentence_embedding"] = _pool(answer["last_hidden_state"], attention_mask, self._pooling)
        return found


class _Vision(torch.nn.Module):
    """A model of images that returns the named outputs alone."""

    def __init__(self, model: torch.nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self._outputs = outputs

    def forward(self, pixel_values: Any) -> dict[str, Any]:
        answer = self.model(pixel_values=pixel_values)
        return {name: answer[name] for name in self._outputs}


def _pool(tokens: Any, mask: Any, pooling: SentencePooling) -> Any:
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    if pooling.mode == "cls":
        vector = tokens[:, 0]
    elif pooling.mode == "max":
        vector = tokens.masked_fill(weights == 0, -1e9).amax(dim=1)
    else:
        vector = (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
    return torch.nn.functional.normalize(vector, p=2.0, dim=1) if pooling.normalize else vector


def _load(folder: Path, facts: TransformersFolder, *, trust: bool) -> Any:
    if facts.own_code and not trust:
        raise UntrustedArtifactError(
            f"the model {facts.architecture or facts.model_type} comes with Python code of its own, which runs when it "
            "is loaded; allow it with --trust if you trust its source"
        )
    kind = getattr(transformers, _CLASSES[facts.task])
    try:
        model, loading = kind.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=trust,
            attn_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:
        raise InvalidArtifactError(f"transformers cannot load the model: {one_line(error)}") from error
    # A pooler is not used, and many files lack its weights.
    missing = [name for name in loading.get("missing_keys", ()) if "pooler" not in name]
    if missing:
        raise InvalidArtifactError(
            f"the weights lack {len(missing)} parameters of a {type(model).__name__}, which would be random (the first "
            f"is {sorted(missing)[0]}); is the model complete?"
        )
    return model


def _tokenizer(folder: Path, *, trust: bool) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
    except Exception as error:
        raise InvalidArtifactError(f"transformers cannot load the tokenizer: {one_line(error)}") from error


def _image(config: Any) -> TensorSpec:
    size, channels = getattr(config, "image_size", None), int(getattr(config, "num_channels", 3))
    height, width = size if isinstance(size, tuple | list) else (size or DYNAMIC, size or DYNAMIC)
    return TensorSpec(name="pixel_values", dtype=DataType.FP32, shape=(DYNAMIC, channels, int(height), int(width)))
