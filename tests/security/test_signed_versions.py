"""Signed versions: what a trusted key did not sign as it is, is not loaded."""

import base64
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.domain.manifest import FileEntry, Format, Manifest
from controlplane.domain.trust import Statement, difference
from controlplane.errors import InvalidInputError, UnverifiedVersionError
from controlplane.settings import SigningSettings, TritonServerSettings, TritonSettings
from controlplane.signing.bundle import PublicKey, load_public_key, sign, verify
from tests.cli.conftest import Cli
from tests.support.api import Api, onnx_scale, serving, settings_for
from tests.support.models import affine_onnx
from tests.support.triton import RunningTriton


def key_pair(folder: Path, name: str, password: str = "") -> tuple[Path, Path]:
    """Make a key as the documentation says: private, public."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    run = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)]
    subprocess.run(run, check=True, capture_output=True)
    subprocess.run(
        ["openssl", "ec", "-in", str(private), "-pubout", "-out", str(public)], check=True, capture_output=True
    )
    if password:
        locked = ["openssl", "pkcs8", "-topk8", "-in", str(private), "-out", str(private) + ".locked"]
        subprocess.run([*locked, "-passout", f"pass:{password}"], check=True, capture_output=True)
        Path(str(private) + ".locked").replace(private)
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("keys")
    return {name: key_pair(folder, name) for name in ("release", "stranger")}


def entry(path: str, data: bytes) -> FileEntry:
    return FileEntry(path=path, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


FILES = (entry("model.onnx", b"graph"), entry("weights/a.bin", b"a"), entry("weights/b.bin", b"b"))


def test_signature_verifies_exactly_the_signed_content(keys: dict[str, tuple[Path, Path]]) -> None:
    private, public = keys["release"]
    trusted = load_public_key(public)
    statement = verify(sign("net:7", FILES, private), [trusted])
    assert statement == Statement("net:7", {file.path: file.sha256 for file in FILES}, trusted.id)
    manifest = Manifest(format=Format.ONNX, files=FILES)
    assert difference("net:7", manifest, statement) == ""
    # Another version, an older one's files under a new number, another model: each has to be signed for itself.
    assert "for 'net:7'" in difference("net:8", manifest, statement)
    assert "for 'net:7'" in difference("other:7", manifest, statement)
    swapped = Manifest(format=Format.ONNX, files=(FILES[0], entry("weights/a.bin", b"b"), entry("weights/b.bin", b"a")))
    assert "'weights/a.bin' differs from the signed one" in difference("net:7", swapped, statement)
    assert "is missing" in difference("net:7", Manifest(format=Format.ONNX, files=FILES[:2]), statement)
    more = Manifest(format=Format.ONNX, files=(*FILES, entry("extra.py", b"")))
    assert "'extra.py' is not signed" in difference("net:7", more, statement)
    with pytest.raises(UnverifiedVersionError, match="not trusted by this control plane"):
        verify(sign("net:7", FILES, keys["stranger"][0]), [trusted])


def test_bundle_with_the_hint_of_another_key_is_rejected(keys: dict[str, tuple[Path, Path]]) -> None:
    trusted = load_public_key(keys["release"][1])
    forged = json.loads(sign("net:7", FILES, keys["stranger"][0]))
    forged["verificationMaterial"]["publicKey"]["hint"] = trusted.id
    with pytest.raises(UnverifiedVersionError, match="is not valid"):
        verify(json.dumps(forged).encode(), [trusted])


@pytest.fixture(scope="module")
def good(keys: dict[str, tuple[Path, Path]]) -> tuple[bytes, PublicKey]:
    return sign("net:7", FILES, keys["release"][0]), load_public_key(keys["release"][1])


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(at=st.integers(min_value=0), flip=st.integers(min_value=1, max_value=255), cut=st.booleans())
def test_damaged_bundle_never_verifies_other_content(
    good: tuple[bytes, PublicKey], at: int, flip: int, cut: bool
) -> None:
    bundle, trusted = good
    at %= len(bundle)
    damaged = bundle[:at] if cut else bundle[:at] + bytes([bundle[at] ^ flip]) + bundle[at + 1 :]
    try:
        statement = verify(damaged, [trusted])
    except (UnverifiedVersionError, InvalidInputError):
        return
    assert statement == verify(bundle, [trusted])  # what is not signed may differ; what is says the same


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(part=st.sampled_from(["mediaType", "verificationMaterial", "dsseEnvelope", "payload"]), value=json_values)
def test_malformed_bundles_are_rejected_cleanly(good: tuple[bytes, PublicKey], part: str, value: Any) -> None:
    bundle, trusted = good
    document = json.loads(bundle)
    if part == "payload":
        document["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(value).encode()).decode()
    else:
        document[part] = value
    if document != json.loads(bundle):
        with pytest.raises((UnverifiedVersionError, InvalidInputError)):
            verify(json.dumps(document).encode(), [trusted])


def test_unusable_keys_are_rejected(tmp_path: Path, keys: dict[str, tuple[Path, Path]]) -> None:
    private, public = keys["release"]
    locked, _ = key_pair(tmp_path, "locked", "5ecret-pass")
    rsa = tmp_path / "rsa.pem"
    subprocess.run(["openssl", "genrsa", "-out", str(rsa), "2048"], check=True, capture_output=True)
    for wrong in (public, tmp_path / "none.pem", locked, rsa):
        with pytest.raises(InvalidInputError, match="is not a valid private key for signing"):
            sign("net:7", FILES, wrong)
    with pytest.raises(InvalidInputError) as refused:
        sign("net:7", FILES, locked, "a-wr0ng-one")
    assert "wr0ng" not in refused.value.message
    assert sign("net:7", FILES, locked, "5ecret-pass")
    for wrong in (private, tmp_path / "none.pub", rsa):
        with pytest.raises(InvalidInputError, match="is not a valid public key"):
            load_public_key(wrong)
    strict = settings_for(tmp_path, embedded=False, signing=SigningSettings(required=True))
    with pytest.raises(InvalidInputError, match="no key is trusted"), serving(strict):
        pass


@dataclass(frozen=True)
class Strict:
    """An API that deploys signed versions alone, on a real Triton, and one on the same bucket that has no policy."""

    api: Api
    triton: RunningTriton

    def loaded(self) -> set[tuple[str, int]]:
        server = self.api.ok(self.api.http.get("/v1/servers/shared"))
        return {(one["model"], one["version"]) for one in server["models"]}


@pytest.fixture
def strict(tmp_path: Path, triton: RunningTriton, keys: dict[str, tuple[Path, Path]]) -> Iterator[Strict]:
    server = TritonServerSettings(
        name="shared", grpc_url=triton.server.grpc_url, repository=triton.server.repository, local=True
    )
    policy = SigningSettings(required=True, public_keys=(keys["release"][1],))
    chosen = settings_for(
        tmp_path,
        embedded=False,
        triton=TritonSettings(servers=(server,), load_timeout_seconds=60),
        signing=policy,
    )
    with serving(chosen) as api:
        yield Strict(api, triton)
        for item in api.ok(api.http.get("/v1/deployments"))["items"]:
            gone = api.ok(api.http.delete(f"/v1/deployments/{item['model']}"), 202)
            api.operation(gone["operation_id"])


def signed(api: Api, reference: str, key: Path) -> Any:
    """Sign a version over the API."""
    model, _, number = reference.partition(":")
    manifest = api.ok(api.http.get(f"/v1/models/{model}/versions/{number}"))["manifest"]
    files = [FileEntry.model_validate(file) for file in manifest["files"]]
    bundle = json.loads(sign(reference, files, key))
    return api.http.post(f"/v1/models/{model}/versions/{number}/signatures", json={"bundle": bundle})


@pytest.mark.triton
def test_only_signed_versions_are_loaded(strict: Strict, keys: dict[str, tuple[Path, Path]]) -> None:
    api = strict.api
    api.publish("sealed", onnx_scale(2))
    refused = api.deploy("sealed:1")
    assert refused["state"] == "failed"
    assert "sealed:1 is not deployed: it is not signed" in refused["error"]["detail"]
    assert ("sealed", 1) not in strict.loaded()
    assert not (strict.triton.repository.root / "sealed").exists(), "not even staged"

    # A signature by a key that is not trusted is not taken.
    problem = api.problem(signed(api, "sealed:1", keys["stranger"][0]), 422, "unverified-version")
    assert "not trusted by this control plane" in problem["detail"]
    made = api.ok(signed(api, "sealed:1", keys["release"][0]), 201)
    assert made["good"]
    listed = api.ok(api.http.get("/v1/models/sealed/versions/1/signatures"))
    assert (listed["required"], listed["verified"], len(listed["items"])) == (True, True, 1)
    # The deployment that failed without the signature continues automatically.
    deadline = time.monotonic() + 60
    while ("sealed", 1) not in strict.loaded():
        assert time.monotonic() < deadline, api.http.get("/v1/deployments/sealed").text
        time.sleep(0.1)
    assert api.deploy("sealed:1")["state"] == "succeeded"
    assert api.infer("sealed", [1.0, 2.0]) == ([2.0, 4.0], 1)

    # Version 2 is not signed: version 1 goes on answering.
    api.publish("sealed", onnx_scale(3))
    assert api.deploy("sealed:2")["state"] == "failed"
    assert api.infer("sealed", [1.0, 2.0]) == ([2.0, 4.0], 1)


@pytest.mark.triton
def test_version_changed_in_the_bucket_is_not_loaded(strict: Strict, keys: dict[str, tuple[Path, Path]]) -> None:
    """An attacker who can write to the bucket replaces the files of a signed version."""
    api, registry = strict.api, strict.api.plane.registry
    api.publish("tampered", onnx_scale(2))
    api.ok(signed(api, "tampered:1", keys["release"][0]), 201)
    api.publish("evil", onnx_scale(666))
    head = registry._models.heads.read("tampered", fresh=True)
    assert head is not None
    evil = registry.get_model("evil").version(1)
    (entry,) = head.value.versions
    changed = head.value.model_copy(update={"versions": (entry.model_copy(update={"manifest": evil.manifest}),)})
    registry._models.heads.append("tampered", changed, after=head.revision, actor="mallory", reason="")
    refused = api.deploy("tampered:1")
    assert refused["state"] == "failed"
    assert "the file 'model.onnx' differs from the signed one" in refused["error"]["detail"]
    assert ("tampered", 1) not in strict.loaded()
    assert not (strict.triton.repository.root / "tampered").exists()


@pytest.mark.triton
def test_verify_checks_the_staged_files(strict: Strict, keys: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    api = strict.api
    api.publish("watched", onnx_scale(2))
    api.ok(signed(api, "watched:1", keys["release"][0]), 201)
    assert api.deploy("watched:1")["state"] == "succeeded"
    (copy,) = api.ok(api.http.get("/v1/models/watched/versions/1/signatures"))["staged"]
    assert (copy["name"], copy["intact"]) == ("watched", True)
    cli = Cli(tmp_path / "data", tmp_path)
    where: dict[str, Any] = {"TRITONCTL_URL": api.url}
    cli.ok("verify", "watched:1", **where)
    staged = strict.triton.repository.root / "watched" / "1" / "model.onnx"
    staged.chmod(0o644)
    staged.write_bytes(onnx_scale(666))
    found = cli("verify", "watched:1", **where)
    assert found.code == 6
    assert "watched:1 is signed, but its files in Triton's model repository differ from the signed files" in found.err
    assert "model.onnx was changed" in found.err


def test_cli_signs_and_verifies(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    cli = Cli(tmp_path / "data", folder)
    private, public = key_pair(folder, "release", "5ecret-pass")
    stranger, stranger_public = key_pair(folder, "stranger")
    model = affine_onnx(folder / "doubling.onnx", scale=2.0)
    password: dict[str, Any] = {"TRITONCTL_SIGN_KEY_PASSWORD": "5ecret-pass"}
    with serving(settings_for(tmp_path / "plane", embedded=False)) as api:
        where: dict[str, Any] = {"TRITONCTL_URL": api.url}
        assert cli("push", "net", model, "--sign-key", private, **where).code == 6  # no password: nothing is sent
        assert cli("show", "net", **where).code == 3
        pushed = cli.ok("push", "net", model, "--sign-key", private, **where, **password)
        assert "signed net:1 with the key" in pushed.out
        assert "net:1 is verified: signed with the key" in cli.ok("verify", "net:1", "--key", public, **where).out
        other = cli("verify", "net:1", "--key", stranger_public, **where)
        assert (other.code, "not trusted by this control plane" in other.err) == (6, True)
        cli.ok("push", "net", model, "--force", **where)
        assert "not signed" in cli("verify", "net:2", "--key", public, **where).err
        cli.ok("sign", "net:2", "--key", stranger, **where)
        cli.ok("verify", "net:2", "--key", stranger_public, "--key", public, **where)
        # Sigstore's own tool says the same of what was pulled.
        cli.ok("pull", "net:1", "pulled", **where)
        bundle = api.ok(api.http.get("/v1/models/net/versions/1/signatures"))["items"][0]["bundle"]
        (folder / "model.sig").write_bytes(base64.b64decode(bundle))
        official = [sys.executable, "-m", "model_signing", "verify", "key", "pulled", "--signature", "model.sig"]
        checked = subprocess.run(
            [*official, "--public_key", str(public)], cwd=folder, capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stderr
        (folder / "pulled" / "model.onnx").write_bytes(b"something else")
        checked = subprocess.run(
            [*official, "--public_key", str(public)], cwd=folder, capture_output=True, text=True, check=False
        )
        assert checked.returncode != 0
