"""Which servers are known to be unable to load a version, from their observed versions and from what has run there."""

from pathlib import Path

import pytest

from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.manifest import FileEntry, Format, Manifest
from controlplane.domain.states import ServerState
from controlplane.lifecycle.desired import PreparedVersion
from controlplane.lifecycle.observation import ReplicaObservation
from controlplane.lifecycle.state import Target
from controlplane.memory.scheduler import MemoryScheduler
from controlplane.reconciler.load_support import LoadSupport
from controlplane.reconciler.server_state import TrackedServer
from controlplane.registry.proofs import ProofKey
from controlplane.registry.registry import Registry
from controlplane.servers.server import ManagedServer
from controlplane.servers.snapshot import ServerSnapshot
from controlplane.settings import MemorySettings
from controlplane.triton.client import TritonClient
from controlplane.triton.repository import ModelRepository
from tests.support.models import affine_signature

REASON = "its opset of ai.onnx is 23, and ONNX Runtime 1.22.0 loads up to 22"
BEFORE, AFTER = "2.59.1", "2.61.0"  # 25.07 and 25.09


@pytest.fixture
def server(registry: Registry, tmp_path: Path) -> TrackedServer:
    managed = ManagedServer("gpu-1", TritonClient("gpu-1", "127.0.0.1:1"), ModelRepository(tmp_path / "models"))
    scheduler = MemoryScheduler.of(managed, MemorySettings(), registry.footprints)
    return TrackedServer(managed, scheduler, ServerSnapshot(ServerState.READY, version=BEFORE), proofs=registry.proofs)


@pytest.fixture
def version() -> PreparedVersion:
    manifest = Manifest(
        format=Format.ONNX,
        files=(FileEntry(path="model.onnx", sha256="0" * 64, size_bytes=100),),
        signature=affine_signature(),
        attributes={"ir_version": 10, "opsets": {"ai.onnx": 23}},
    )
    config = {"backend": "onnxruntime", "max_batch_size": 0, "instance_group": [{"kind": "KIND_CPU"}]}
    return PreparedVersion(Target(3, "digest"), manifest, DeploymentSettings(), config)


def test_a_server_is_judged_by_the_version_that_it_reports(server: TrackedServer, version: PreparedVersion) -> None:
    support = LoadSupport()
    assert support.refusals("m", version, [server]) == {"gpu-1": REASON}
    server.snapshot = ServerSnapshot(ServerState.READY, version=AFTER)
    assert support.refusals("m", version, [server]) == {}
    server.snapshot = ServerSnapshot(ServerState.UNREACHABLE, version="")
    assert support.refusals("m", version, [server]) == {}


def test_a_version_that_runs_on_a_server_is_not_refused_there(server: TrackedServer, version: PreparedVersion) -> None:
    support = LoadSupport()
    server.unit("m").facts = ReplicaObservation(loaded=frozenset({2}))
    assert support.refusals("m", version, [server]) == {"gpu-1": REASON}
    server.unit("m").facts = ReplicaObservation(loaded=frozenset({2, 3}))
    assert support.refusals("m", version, [server]) == {}


def test_a_version_that_passed_its_proof_on_a_server_is_not_refused_there(
    server: TrackedServer, version: PreparedVersion, registry: Registry
) -> None:
    support = LoadSupport()
    key = server.proof_key("m", version)
    assert key is not None
    registry.proofs.put(ProofKey(key.content, "other", key.backend, key.device), model="m", version=3, server="gpu-1")
    assert support.refusals("m", version, [server]) == {"gpu-1": REASON}
    registry.proofs.put(key, model="m", version=3, server="gpu-1")
    assert support.refusals("m", version, [server]) == {}
