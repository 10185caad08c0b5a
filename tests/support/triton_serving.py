"""Helpers to stage, load and clean up models on a live server in a test."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.samples import Sample
from controlplane.triton.client import TritonClient
from controlplane.triton.embedded.server import EmbeddedTriton
from controlplane.triton.model_config import build_config
from controlplane.triton.repository import ModelRepository
from controlplane.triton.warmup import warmup_files
from tests.support.triton_models import ModelFiles


@dataclass
class Serving:
    """A live server, a client of the test's own loop, and what the test has loaded."""

    server: EmbeddedTriton
    repository: ModelRepository
    client: TritonClient
    names: set[str] = field(default_factory=set)

    def name(self, word: str = "model") -> str:
        name = f"{word}-{uuid.uuid4().hex[:8]}"
        self.names.add(name)
        return name

    def stage(
        self,
        name: str,
        version: int,
        model: ModelFiles,
        settings: DeploymentSettings | None = None,
        samples: Sequence[Sample] = (),
    ) -> dict[str, Any]:
        config = build_config(name, model.manifest, settings or DeploymentSettings(), [version], samples=samples)
        signature = model.manifest.signature
        warmup = warmup_files(signature, samples[0], config) if signature and samples else {}
        self.repository.stage(name, version, model.files, config, warmup=warmup)
        return config

    async def load(
        self,
        name: str,
        model: ModelFiles,
        versions: Sequence[int] = (1,),
        settings: DeploymentSettings | None = None,
        samples: Sequence[Sample] = (),
    ) -> dict[str, Any]:
        config = build_config(name, model.manifest, settings or DeploymentSettings(), versions, samples=samples)
        await self.client.load(name, config)
        return config

    async def serve(
        self,
        model: ModelFiles,
        settings: DeploymentSettings | None = None,
        samples: Sequence[Sample] = (),
    ) -> str:
        """Stage and load version 1 under a new name."""
        name = self.name()
        await self.client.load(name, self.stage(name, 1, model, settings, samples))
        return name
