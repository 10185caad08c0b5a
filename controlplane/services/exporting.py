"""Deployments as entries of a plain Triton model repository, which a Triton without a control plane serves."""

import asyncio
import base64
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from controlplane.domain.manifest import FileEntry, Manifest
from controlplane.domain.model_directory import CONFIG_FILE, shared_files
from controlplane.domain.names import validate_model_name
from controlplane.domain.pipelines import MEMBERS_PARAMETER, is_ensemble
from controlplane.domain.portability import Loads, ModelFacts, check_all, groups, image_targets
from controlplane.domain.states import DeploymentStatus
from controlplane.lifecycle.desired import DesiredStateResolver, PreparedVersion
from controlplane.reconciler.controller import Reconciler
from controlplane.registry.deployments import DeploymentRevision
from controlplane.registry.registry import Registry
from controlplane.triton.config_json import RESERVED_PARAMETERS
from controlplane.triton.layout import layout
from controlplane.triton.model_config import SCALARS_PARAMETER, to_pbtxt
from controlplane.triton.model_directory import outside_environment
from controlplane.triton.warmup import FOLDER as WARMUP
from controlplane.triton.warmup import warmup_files, warmup_names


class ExportedFile(FileEntry):
    """A file of a model's folder in a model repository; it has a source or a content."""

    source: str | None = Field(
        default=None, description="The file of the version with these bytes; download it from the version."
    )
    content: str | None = Field(default=None, description="The bytes of a file that the control plane made, as Base64.")


class RepositoryEntry(BaseModel):
    """A deployment as the folder of a model in a plain Triton model repository."""

    model_config = ConfigDict(frozen=True)

    model: str = Field(description="The model, which is the folder's name.")
    version: int = Field(description="The version that the newest revision of the deployment names.")
    revision: int = Field(description="That revision.")
    config: dict[str, JsonValue] = Field(description="The configuration in Triton's JSON form.")
    files: tuple[ExportedFile, ...] = Field(description="All files, config.pbtxt included, by path in the folder.")
    notes: tuple[str, ...] = Field(description="What a Triton that serves the folder must have, one sentence each.")


class Exporting:
    """Use cases for exports."""

    def __init__(self, registry: Registry, reconciler: Reconciler) -> None:
        self._registry = registry
        self._reconciler = reconciler

    async def entry(self, model: str) -> RepositoryEntry:
        """Return a deployment as an entry of a plain Triton model repository.

        Raises:
            NotFoundError: The model is not deployed.
            InvalidInputError: The version cannot be loaded with the deployment's settings.
        """
        validate_model_name(model)
        return await asyncio.to_thread(self._entry, model)

    def _entry(self, model: str) -> RepositoryEntry:
        revision = self._registry.deployments.get(model, fresh=True)
        # A resolver of its own, because the reconciler's is not shared; it checks what a load checks.
        resolver = DesiredStateResolver(self._registry)
        prepared = resolver.prepare(model, revision.spec.version, revision.spec.settings)
        config = plain_config(prepared.config)
        files = dict(_stored(prepared.manifest, revision.spec.version))
        files |= {path: _made(path, content) for path, content in _contents(prepared, config, resolver).items()}
        return RepositoryEntry(
            model=model,
            version=revision.spec.version,
            revision=revision.number,
            config=config,
            files=tuple(files[path] for path in sorted(files)),
            notes=tuple(_notes(prepared.manifest, config, revision, self._reconciler.status(model))),
        )


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without the control plane's own parameters.

    The names of scalars stay: the embedded server's backends read them, and without them such a model fails there. So
    do the versions of a pipeline's members, which the code of a Python model may read.
    """
    parameters = {
        name: value
        for name, value in config.get("parameters", {}).items()
        if name in {SCALARS_PARAMETER, MEMBERS_PARAMETER} or not name.startswith(RESERVED_PARAMETERS)
    }
    plain = {key: value for key, value in config.items() if key != "parameters"}
    return {**plain, "parameters": parameters} if parameters else plain


def _stored(manifest: Manifest, version: int) -> Iterator[tuple[str, ExportedFile]]:
    """Yield the files that are in the store, by their path in the model's folder."""
    placed = {f"{version}/{path}": file for path, file in layout(manifest).items()} | shared_files(manifest)
    for path, file in placed.items():
        yield path, ExportedFile(path=path, sha256=file.sha256, size_bytes=file.size_bytes, source=file.path)


def _contents(prepared: PreparedVersion, config: Mapping[str, Any], resolver: DesiredStateResolver) -> dict[str, bytes]:
    """Return the files that the control plane makes: the configuration, and the data of a warm-up request."""
    made = {CONFIG_FILE: to_pbtxt(config).encode()}
    if is_ensemble(config):  # Triton requires the version folder, and nothing in it
        made[f"{prepared.target.version}/about.txt"] = b"The steps of this ensemble are in config.pbtxt.\n"
    signature = prepared.manifest.signature
    if signature is not None and warmup_names(config):
        files = warmup_files(signature, resolver.samples(prepared)[0], config)
        made |= {f"{WARMUP}/{name}": content for name, content in files.items()}
    return made


def _made(path: str, content: bytes) -> ExportedFile:
    return ExportedFile(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        content=base64.b64encode(content).decode(),
    )


def _notes(
    manifest: Manifest, config: Mapping[str, Any], revision: DeploymentRevision, status: DeploymentStatus | None
) -> Iterator[str]:
    version = revision.spec.version
    serving = {one.serving_version for one in status.servers} - {None, version} if status is not None else set()
    if serving:
        yield f"version {version} is exported, but the version {', '.join(map(str, sorted(serving, key=str)))} answers"
    scalars = config.get("parameters", {}).get(SCALARS_PARAMETER, {}).get("string_value", "").splitlines()
    if scalars:
        yield (
            f"only the embedded server's backends convert {', '.join(scalars)}, which have rank 0 in the model and [1] "
            "in the configuration"
        )
    if pins := revision.spec.settings.members:
        names = ", ".join(f"{member}:{version}" for member, version in pins.items())
        yield f"it needs its members in exactly these versions in the same repository: {names}"
    if environment := outside_environment(config):
        yield f"the server must have the execution environment {environment}"
    for title, report in groups(check_all(ModelFacts.of_manifest(manifest), image_targets())):
        if report.loads is Loads.NO:
            yield f"NVIDIA's images {title} do not load it: {', '.join(report.reasons)}"
