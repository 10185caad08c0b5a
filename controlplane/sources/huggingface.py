"""Models from the Hugging Face Hub: ``hf://ORG/MODEL`` and ``hf://ORG/MODEL@REVISION``."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from controlplane.domain.manifest import Origin
from controlplane.errors import ForbiddenError, InvalidArtifactError, InvalidInputError, NotFoundError
from controlplane.sources.base import ModelSource, Progress, SourceArtifact
from controlplane.sources.errors import SourceError, SourceUnavailableError

_REPOSITORY = re.compile(r"hf://(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")
_SNAPSHOT = re.compile(r"models--(?P<name>[^/]+)/snapshots/(?P<revision>[0-9a-f]{40})$")
_FILES = ("*.json", "*.txt", "*.model", "*.py", "README.md")
_SAFETENSORS, _PICKLED = "*.safetensors", "*.bin"
_IGNORED = ("onnx/*", "openvino/*", "coreml/*", "tf_*", "flax_*", "rust_*", "training_args.bin", "optimizer*")
_CARD_FACTS = ("pipeline_tag", "license", "library_name", "base_model")


class HuggingFaceSource(ModelSource):
    """The Hugging Face Hub, or another server with its API (``HF_ENDPOINT``), through `huggingface_hub`."""

    scheme = "hf"
    example = "hf://sentence-transformers/all-MiniLM-L6-v2"

    def fetch(self, uri: str, folder: Path, environment: Mapping[str, str], progress: Progress) -> SourceArtifact:  # noqa: ARG002 - huggingface_hub has its own cache and reads its variables itself
        """See `controlplane.sources.base.ModelSource.fetch`."""
        match = _REPOSITORY.fullmatch(uri)
        if match is None:
            raise InvalidInputError(f"{uri!r} is not valid; use hf://ORG/MODEL or hf://ORG/MODEL@REVISION", uri=uri)
        name, revision = match["name"], match["revision"]
        progress(f"downloading {name} from Hugging Face")
        path = _download(name, revision, (*_FILES, _SAFETENSORS))
        if not any(path.glob(_SAFETENSORS)):
            path = _download(name, revision, (*_FILES, _PICKLED))
        if not (path / "config.json").is_file():
            raise InvalidArtifactError(f"{name} has no config.json, so it is not a model of transformers")
        return _artifact(path, name, path.name)

    def recognize(self, path: Path) -> SourceArtifact | None:
        """See `controlplane.sources.base.ModelSource.recognize`: a snapshot in the cache of `huggingface_hub`."""
        match = _SNAPSHOT.search(path.absolute().as_posix())
        if match is None or not (path / "config.json").is_file():
            return None
        return _artifact(path, match["name"].replace("--", "/"), match["revision"])


def _artifact(path: Path, name: str, revision: str) -> SourceArtifact:
    origin = Origin(uri=f"hf://{name}@{revision}", revision=revision, tags=_card(path))
    return SourceArtifact(path, name.rpartition("/")[2], origin)


def _card(path: Path) -> dict[str, str]:
    """Return facts from the head of the model card (README.md)."""
    try:
        text = (path / "README.md").read_text("utf-8")[:65536]
        facts: Any = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return {}
    if not isinstance(facts, dict):
        return {}
    return {key: str(facts[key])[:1024] for key in _CARD_FACTS if isinstance(facts.get(key), str)}


def _download(name: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ModuleNotFoundError as error:
        raise SourceError(
            "downloading from Hugging Face needs the package huggingface_hub, which is not installed; install it: pip "
            "install 'triton-control-plane[hf]', or give the folder of a downloaded model"
        ) from error
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(_IGNORED)
            )
        )
    except errors.GatedRepoError as error:
        raise ForbiddenError(
            f"access to {name} is restricted: ask for it on its page, and set HF_TOKEN", needed="access to the model"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise NotFoundError(f"the model {name} has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise NotFoundError(f"Hugging Face has no model {name}, or it is private: set HF_TOKEN") from error
    except errors.HFValidationError as error:
        raise InvalidInputError(f"{name!r} is not a valid name of a model") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise SourceUnavailableError(
            f"{name} is not in the cache, and Hugging Face is unreachable or HF_HUB_OFFLINE is set"
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise SourceError(f"failed to download {name}: {type(error).__name__}") from error
