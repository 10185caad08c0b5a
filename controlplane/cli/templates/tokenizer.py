"""A Triton model that turns texts into tokens, made by `tritonctl text-pipeline`.

Input ``text``: UTF-8, one text per row. Outputs: tokens by name, padded to the longest text of the request. The files
``tokenizer.json`` and ``settings.json`` are beside this one.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

_FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


class TritonPythonModel:
    """One instance."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the tokenizer. An exception is reported to the caller of the load."""
        try:
            from tokenizers import Tokenizer
        except ModuleNotFoundError as error:
            raise ValueError(
                "the Python package tokenizers is not installed where Triton runs; install it there: pip install "
                "tokenizers"
            ) from error
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = json.loads((folder / "settings.json").read_text("utf-8"))
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(settings["max_length"])
        self._tokenizer.enable_padding(**settings["padding"])
        self._types = {
            output["name"]: pb_utils.triton_string_to_numpy(output["data_type"])
            for output in json.loads(args["model_config"])["output"]
        }

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        given = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1)
        try:
            texts = [text.decode() if isinstance(text, bytes) else str(text) for text in given]
        except UnicodeDecodeError as error:
            message = f"a text is not UTF-8 (byte {error.start})"
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(message))
        encoded = self._tokenizer.encode_batch(texts)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(name, np.array([getattr(one, _FIELDS[name]) for one in encoded], dtype=kind))
                for name, kind in self._types.items()
            ]
        )
