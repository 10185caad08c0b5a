"""Making registries and small artifacts to publish."""

from collections.abc import Sequence
from pathlib import Path

from controlplane.domain.manifest import Format, Manifest
from controlplane.domain.model import VersionEntry
from controlplane.registry.artifact import scan
from controlplane.registry.cache import BlobCache
from controlplane.registry.head_memory import open_memory
from controlplane.registry.registry import Registry
from controlplane.settings import GcSettings
from controlplane.storage.base import ObjectStore

CACHE_BYTES = 1 << 30


def new_registry(
    store: ObjectStore, cache: Path, *, head_max_age_seconds: float = 0.0, heads: Path | None = None
) -> Registry:
    """A registry whose cache is in the folder ``cache``, and which remembers heads in the folder ``heads``."""
    return Registry(
        store,
        BlobCache(cache, CACHE_BYTES),
        head_max_age_seconds=head_max_age_seconds,
        gc=GcSettings(),
        memory=None if heads is None else open_memory(store, heads),
    )


def artifact(folder: Path, **contents: bytes) -> tuple[Manifest, dict[str, Path]]:
    """Write files (``model="…"`` becomes ``model.onnx``) and return a manifest of them with their paths by digest."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}.onnx").write_bytes(content)
    scanned = scan(folder)
    manifest = Manifest(format=Format.ONNX, files=tuple(entry for entry, _ in scanned))
    return manifest, {entry.sha256: path for entry, path in scanned}


def publish(
    registry: Registry, folder: Path, content: bytes, *, model: str = "m", aliases: Sequence[str] = ()
) -> VersionEntry:
    """Publish a version with one file of this content."""
    manifest, files = artifact(folder / "artifact", model=content)
    return registry.publish(model, manifest, files, actor="tests", aliases=aliases)


def require_readable(registry: Registry, model: str) -> None:
    """Raise if a blob of a live version is missing or damaged."""
    for entry in registry.get_model(model).live_versions:
        for blob in registry.manifest(model, entry.number).blobs:
            registry.read_blob(blob.sha256)
