"""Checks that a server can run a version, before anything is loaded there."""

from collections.abc import Collection, Mapping
from typing import Any

from controlplane.domain.manifest import Manifest
from controlplane.domain.model_directory import version_files
from controlplane.domain.pipelines import ENSEMBLE
from controlplane.servers.server import ManagedServer
from controlplane.triton.embedded.backend_directory import backend_names
from controlplane.triton.model_directory import AOTINDUCTOR, MODEL_FILES


def missing_for(manifest: Manifest, server: ManagedServer) -> str:
    """Return what a server lacks to run a version, and what to do; empty if nothing is known to be missing.

    Only the embedded server's backends are known: Triton does not report its backends.
    """
    if manifest.config is None or server.embedded is None:
        return ""
    present = backend_names(server.embedded.backends)
    if present and manifest.backend not in present and manifest.backend != ENSEMBLE:
        return (
            f"the version needs the backend {manifest.backend!r}, and the embedded server {server.name!r} has only "
            f"{', '.join(sorted(present))}; add a server that has it (CONTROLPLANE_TRITON__SERVERS)"
        )
    if manifest.config.get("platform") == AOTINDUCTOR:
        return (
            f"the version is an AOTInductor package (platform torch_aoti), which the embedded server {server.name!r} "
            "does not run; add a server that does (CONTROLPLANE_TRITON__SERVERS)"
        )
    if manifest.backend == "onnxruntime" and not _has_model_file(manifest):
        return (
            f"the ONNX model is a folder, and the embedded server {server.name!r} loads only a file; move its files "
            "into the version folder, or add a server that loads it (CONTROLPLANE_TRITON__SERVERS)"
        )
    if manifest.config.get("max_batch_size", 0) and (name := _reshaped_to_nothing(manifest.config)):
        return (
            f"input {name!r} has an empty reshape, and a request without rows for such an input ends the embedded "
            f"server {server.name!r} (Triton 2.51); remove the reshape, and make the model accept one more dimension"
        )
    if manifest.signature is None:
        return (
            "config.pbtxt declares no inputs or no outputs, and the embedded server does not complete configurations; "
            "declare them there, or push the directory again with --input and --out"
        )
    return ""


def _has_model_file(manifest: Manifest) -> bool:
    """Return whether the model that the configuration names is a file; Triton also takes a folder of this name."""
    name = (manifest.config or {}).get("default_model_filename") or MODEL_FILES["onnxruntime"]
    return name in version_files(manifest)


def _reshaped_to_nothing(config: Mapping[str, Any]) -> str:
    """Return the name of an input whose rows have no dimensions; empty if there is none."""
    inputs = config.get("input", ())
    return next((str(one["name"]) for one in inputs if "reshape" in one and not one["reshape"].get("shape")), "")


def missing_everywhere(manifest: Manifest, servers: Collection[ManagedServer]) -> str:
    """Return what one server lacks to run a version, if no server can run it; else empty."""
    missing = [missing_for(manifest, server) for server in servers]
    return missing[0] if missing and all(missing) else ""
