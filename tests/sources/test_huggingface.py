"""URIs of Hugging Face, a snapshot in its cache, and the message when its package is missing."""

import importlib.util
import json
from pathlib import Path

import pytest

from controlplane.errors import InvalidInputError
from controlplane.sources.errors import SourceError
from controlplane.sources.huggingface import HuggingFaceSource

REVISION = "a" * 40
CARD = "---\npipeline_tag: sentence-similarity\nlicense: apache-2.0\ntags: [a, b]\n---\n# Model\n"


def test_snapshot_in_the_cache_keeps_its_origin(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--mini" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    assert HuggingFaceSource().recognize(snapshot) is None, "an empty snapshot is no model"
    (snapshot / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (snapshot / "README.md").write_text(CARD)
    artifact = HuggingFaceSource().recognize(snapshot)
    assert artifact is not None
    assert (artifact.name, artifact.origin.uri) == ("mini", f"hf://org/mini@{REVISION}")
    assert artifact.origin.tags == {"pipeline_tag": "sentence-similarity", "license": "apache-2.0"}
    (snapshot / "README.md").write_text("--- [")
    artifact = HuggingFaceSource().recognize(snapshot)
    assert artifact is not None
    assert artifact.origin.tags == {}
    assert HuggingFaceSource().recognize(tmp_path) is None


@pytest.mark.parametrize("uri", ["hf://", "hf://a/b/c", "hf://a/b@"])
def test_invalid_uri_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="use hf://ORG/MODEL"):
        HuggingFaceSource().fetch(uri, tmp_path, {}, print)


@pytest.mark.skipif(importlib.util.find_spec("huggingface_hub") is not None, reason="huggingface_hub is installed")
def test_missing_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"pip install 'triton-control-plane\[hf\]'"):
        HuggingFaceSource().fetch("hf://org/mini", tmp_path, {}, print)
