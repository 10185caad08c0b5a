"""An agent as a process: killed in the middle of its work, without its bucket, and asked by those who may not."""

import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import SecretStr

from controlplane.domain.manifest import Manifest
from controlplane.errors import (
    AgentError,
    AgentUnavailableError,
    ControlPlaneError,
    InvalidInputError,
    NotFoundError,
    StoreUnavailableError,
)
from controlplane.servers.agent import AgentClient, AgentRepository
from controlplane.settings import TritonServerSettings
from controlplane.storage.base import ObjectStore
from controlplane.storage.filesystem import FilesystemStore
from controlplane.storage.s3.store import S3Store
from tests.support.agents import KEY, Agent, asking, put_model, running_agent, sent
from tests.support.faultproxy import Action, Fault, fault_proxy
from tests.support.moto import moto_server
from tests.support.processes import wait_until

CONFIG = {"name": "vad", "backend": "onnxruntime", "max_batch_size": 0}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FilesystemStore:
    return FilesystemStore(tmp_path_factory.mktemp("bucket") / "store")


@pytest.fixture(scope="module")
def agent(store: FilesystemStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with running_agent(tmp_path_factory.mktemp("agent") / "data", f"--store={store.url}") as running:
        yield running


@pytest.fixture
def there(agent: Agent) -> Iterator[AgentRepository]:
    with asking(agent.url) as repository:
        yield repository


def no_checkout(manifest: Manifest) -> AbstractContextManager[Mapping[str, Path]]:
    raise AssertionError(f"bytes go through the control plane: {manifest}")


def install(there: AgentRepository, name: str, version: int, manifest: Manifest) -> dict[str, float]:
    config = {**CONFIG, "name": name}
    return there.install(name, version, manifest, config, {}, no_checkout, lambda: None)


def test_stages_lists_repairs_and_removes(agent: Agent, there: AgentRepository, store: ObjectStore) -> None:
    manifest = put_model(store, b"the model", b"the weights")
    for _ in range(2):  # the second time there is nothing to do
        assert set(install(there, "vad", 1, manifest)) == {"fetch", "stage"}
    folder = agent.repository / "vad"
    before = (folder / "1").stat()
    assert {path.name for path in (folder / "1").iterdir()} == {"model.onnx", "weights-1.bin"}
    assert 'backend: "onnxruntime"' in (folder / "config.pbtxt").read_text()
    assert there.staged() == {"vad": {1}}
    assert there.root == agent.repository
    free, total = there.space() or (0, 0)
    assert 0 < free <= total

    assert there.differences("vad", 1, manifest) == []
    assert there.differences("vad", 2, manifest) is None
    ready = (None, {**CONFIG}, dict, no_checkout)
    assert there.make_ready("vad", {1: manifest}, *ready) == []
    assert (folder / "1").stat().st_mtime_ns == before.st_mtime_ns
    (folder / "1" / "model.onnx").unlink()
    (folder / "1" / "model.onnx").write_bytes(b"other")
    assert there.differences("vad", 1, manifest) == ["model.onnx was changed"]
    assert there.make_ready("vad", {1: manifest}, *ready) == ["model.onnx was changed in version 1"]
    assert (folder / "1" / "model.onnx").read_bytes() == b"the model"

    there.renew("vad", [1])
    assert (folder / "1").stat().st_mtime_ns > before.st_mtime_ns
    assert [there.remove_version("vad", 1), there.remove_version("vad", 1)] == [True, False]
    assert [there.remove_model("vad"), there.remove_model("vad")] == [True, False]
    assert there.staged() == {}


def test_warm_up_data_is_sent_once_it_is_missing(agent: Agent, there: AgentRepository, store: ObjectStore) -> None:
    content = b"\0" * 4
    name = "df3f619804a92fdb4057192dc43dd748"  # the beginning of its SHA-256
    inputs = {"x": {"data_type": "TYPE_FP32", "dims": [1], "input_data_file": name}}
    config = {**CONFIG, "name": "warm", "model_warmup": [{"name": "golden", "batch_size": 1, "inputs": inputs}]}
    manifest, asked = put_model(store, b"warm"), []

    def warmup() -> dict[str, bytes]:
        asked.append(1)
        return {name: content}

    install(there, "warm", 1, manifest)
    for _ in range(2):
        assert there.make_ready("warm", {1: manifest}, manifest, config, warmup, no_checkout) == []
    assert (agent.repository / "warm" / "warmup" / name).read_bytes() == content
    assert len(asked) == 1
    body = {"name": "warm", "version": 1, "manifest": manifest.model_dump(mode="json"), "warmup": {name: "AAAA"}}
    refused = sent(agent.url, "install", body)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid-input")
    there.remove_model("warm")


def test_same_version_staged_twice_at_once(agent: Agent, there: AgentRepository, store: ObjectStore) -> None:
    manifest = put_model(store, b"m" * (1 << 20), *(bytes([number]) * (1 << 20) for number in range(8)))
    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(install, there, name, 1, manifest) for name in ("both", "both~candidate") * 3]:
            done.result(60)
    # A candidate that was staged first became the model's version; one that came later has its own folder.
    assert there.staged()["both"] == {1}
    assert there.differences("both", 1, manifest) == []
    assert not list(agent.repository.glob(".incomplete*"))
    there.remove_model("both")
    there.remove_model("both~candidate")


def test_lost_answers_are_harmless(agent: Agent, store: ObjectStore) -> None:
    manifest = put_model(store, b"lost")
    with fault_proxy(agent.url) as proxy, asking(proxy.endpoint_url) as there:
        proxy.inject(Fault(Action.LOSE_ANSWER, "POST", "install"))
        install(there, "lost", 1, manifest)
        assert proxy.count("POST", "install") == 2
        assert there.staged()["lost"] == {1}
        proxy.inject(Fault(Action.LOSE_ANSWER, "POST", "remove"))
        assert there.remove_model("lost") is False  # the first request removed it
        assert there.staged() == {}
        with proxy.lasting(Fault(Action.REFUSE)):
            assert there.staged() == {}  # what it said last counts while it is away: the server may be fine
            with pytest.raises(AgentUnavailableError, match="the agent of gpu-1 cannot be reached"):
                there.remove_model("lost")


def test_only_the_key_admits(agent: Agent, store: ObjectStore) -> None:
    manifest = put_model(store, b"key")
    with (
        asking(agent.url, "another-key-of-its-own") as there,
        pytest.raises(AgentError, match="does not accept the key"),
    ):
        install(there, "secret", 1, manifest)
    for path in ("install", "make-ready", "compare", "renew", "remove", "lock"):
        for key in (None, "wrong", "a-control-key-for-testz"):
            assert sent(agent.url, path, {}, key=key).status_code == 401
    assert not (agent.repository / "secret").exists()
    assert "a-control-key-for-tests" not in agent.log.read_text()


def test_other_versions_of_the_protocol(agent: Agent) -> None:
    unknown = sent(agent.url, "install", {}, version="v9")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "no-such-route")

    class Newer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"protocols": [7, 8], "release": "9.0"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Newer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with asking(f"http://127.0.0.1:{server.server_port}") as there, pytest.raises(AgentError) as refused:
            there.staged()
        server.shutdown()
    assert "release 9.0) speaks the versions 7, 8 of the agent protocol, and this control plane 1" in str(refused.value)


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".hidden", "a\u0000b", "x~other", "..", "~candidate"])
def test_names_that_leave_the_repository_are_refused(agent: Agent, store: ObjectStore, name: str) -> None:
    manifest = put_model(store, b"evil").model_dump(mode="json")
    for path, body in (
        ("install", {"name": name, "version": 1, "manifest": manifest}),
        ("make-ready", {"name": name, "versions": {"1": manifest}}),
        ("compare", {"name": name, "version": 1, "manifest": manifest}),
        ("renew", {"name": name, "versions": [1]}),
        ("remove", {"name": name}),
    ):
        assert sent(agent.url, path, body).status_code == 422, path


@pytest.mark.parametrize(
    ("path", "digest"),
    [
        ("../../evil", ""),
        ("/etc/evil", ""),
        ("a/../../evil", ""),
        ("a\\b", ""),
        ("ok", "../../../evil"),
        ("ok", "A" * 64),
    ],
)
def test_files_that_leave_the_repository_are_refused(agent: Agent, store: ObjectStore, path: str, digest: str) -> None:
    manifest = put_model(store, b"evil").model_dump(mode="json")
    file = {"path": path, "sha256": digest or manifest["files"][0]["sha256"], "size_bytes": 4}
    manifest["files"].append(file)
    refused = sent(agent.url, "install", {"name": "evil", "version": 1, "manifest": manifest})
    assert refused.status_code == 422
    for body in (b"", b"{", b"[]", b'"x"', json.dumps({"name": "evil", "version": -1}).encode()):
        assert sent(agent.url, "install", body).status_code == 422
    assert not list(agent.folder.parent.rglob("*evil*"))


def test_wrong_content_is_not_staged(agent: Agent, there: AgentRepository, store: FilesystemStore) -> None:
    manifest = put_model(store, b"right")
    (store_file,) = Path(store.url.removeprefix("file://")).rglob(manifest.files[0].sha256)
    store_file.chmod(0o644)
    store_file.write_bytes(b"wrong")
    with pytest.raises(ControlPlaneError, match="agent of gpu-1"):
        install(there, "damaged", 1, manifest)
    store_file.unlink()
    with pytest.raises(NotFoundError):
        install(there, "damaged", 1, manifest)
    assert not there.staged().get("damaged")


def test_locks_belong_to_one_holder(there: AgentRepository) -> None:
    first, second = there.lock("tuning"), there.lock("tuning")
    assert first.try_acquire()
    assert not second.try_acquire()
    first.release()
    assert second.try_acquire()
    second.release()


def test_only_a_known_certificate_admits(tmp_path: Path, store: FilesystemStore) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "agent", "plane", "other")}
    authority.cert_pem.write_to_path(files["ca"])
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(files["agent"])
    authority.issue_cert("plane").private_key_and_cert_chain_pem.write_to_path(files["plane"])
    stranger.issue_cert("plane").private_key_and_cert_chain_pem.write_to_path(files["other"])
    options = (f"--store={store.url}", f"--tls-cert={files['agent']}", f"--tls-client-ca={files['ca']}")
    with running_agent(tmp_path / "data", *options) as agent:
        url = agent.url.replace("http:", "https:")
        known = TritonServerSettings(
            name="gpu-1",
            grpc_url="gpu-1:8001",
            agent_url=url,
            agent_key=SecretStr(KEY),
            agent_ca_file=files["ca"],
            agent_client_cert=files["plane"],
        )
        client = AgentClient.of(known)
        assert AgentRepository(client).staged() == {}
        client.close()
        changes: dict[str, Any]
        for changes in ({"agent_client_cert": files["other"]}, {"agent_client_cert": None}, {"agent_ca_file": None}):
            client = AgentClient.of(known.model_copy(update=changes))
            with pytest.raises(AgentUnavailableError):
                AgentRepository(client).staged()
            client.close()
    for changes in ({"agent_ca_file": tmp_path / "none.pem"}, {"agent_key": None}, {"agent_url": "gpu-1:8094"}):
        with pytest.raises(InvalidInputError, match="gpu-1"):
            AgentClient.of(known.model_copy(update=changes))


@pytest.mark.slow
def test_killed_while_it_fetches_and_started_again(tmp_path: Path) -> None:
    with moto_server() as server, fault_proxy(server.endpoint_url) as proxy:
        bucket = server.new_bucket()
        settings = server.settings(bucket, timeout_seconds=30.0, retries=0)
        assert settings.secret_access_key is not None
        direct = S3Store(bucket, "registry", settings)
        manifest = put_model(direct, b"small", b"l" * (1 << 20))
        large = manifest.files[1].sha256
        environment = {
            "CONTROLPLANE_STORE__URL": settings.url,
            "CONTROLPLANE_STORE__ENDPOINT_URL": proxy.endpoint_url,
            "CONTROLPLANE_STORE__REGION": "us-east-1",
            "CONTROLPLANE_STORE__PATH_STYLE": "true",
            "CONTROLPLANE_STORE__RETRIES": "0",
            "CONTROLPLANE_STORE__ACCESS_KEY_ID": str(settings.access_key_id),
            "CONTROLPLANE_STORE__SECRET_ACCESS_KEY": settings.secret_access_key.get_secret_value(),
        }
        with running_agent(tmp_path / "data", **environment) as agent, asking(agent.url) as there:
            assert agent.process is not None
            install(there, "kept", 1, put_model(direct, b"kept"))
            with ThreadPoolExecutor(1) as pool:
                with proxy.lasting(Fault(Action.STALL, "GET", large)):
                    waiting = pool.submit(install, there, "vad", 1, manifest)
                    wait_until(lambda: proxy.count("GET", large) > 0, agent.process, agent.log)
                    agent.kill()
                    # What a kill in the middle of the copy leaves.
                    (agent.repository / ".incomplete-vad-1-0a1b2c3d").mkdir()
                agent.start()
                waiting.result(120)  # the control plane asks again and waits for the agent that is back
            assert there.staged() == {"kept": {1}, "vad": {1}}
            assert there.differences("vad", 1, manifest) == []
            assert not list(agent.repository.glob(".incomplete*"))

            # Without the bucket it starts, keeps what it has, and stages what its cache contains.
            agent.stop()
            with proxy.lasting(Fault(Action.REFUSE)):
                agent.start()
                assert there.staged() == {"kept": {1}, "vad": {1}}
                there.remove_version("vad", 1)
                install(there, "again", 3, manifest)
                with pytest.raises(StoreUnavailableError, match="own connection to the store"):
                    install(there, "new", 1, put_model(direct, b"new"))
                with pytest.raises(InvalidInputError):
                    there.renew("../up", [1])
            install(there, "new", 1, put_model(direct, b"new"))
        direct.close()
