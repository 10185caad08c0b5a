"""Keys and TLS as an operator uses them: real processes, real certificates."""

import json
import os
import ssl
import stat
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from tests.cli.conftest import Cli
from tests.support.processes import free_port

pytestmark = pytest.mark.slow

KEY = "TRITONCTL_API_KEY"


@pytest.fixture
def here(tmp_path: Path) -> Cli:
    folder = tmp_path / "here"
    folder.mkdir()
    return Cli(tmp_path / "data", folder)


def serve(cli: Cli, *options: object, **environment: str) -> AbstractContextManager[dict[str, Any]]:
    """Run `tritonctl serve` without a Triton; yields what its ready file says."""
    return cli.running("serve", "--port", "0", *options, **environment)


def test_first_key_created_offline_enables_authentication(here: Cli) -> None:
    refused = here("serve", "--host", "0.0.0.0", "--port", 0)
    assert refused.code == 6
    assert "refusing to listen on 0.0.0.0: there is no API key yet" in refused.err
    assert "tritonctl keys create NAME --scope admin --offline" in refused.err
    assert "--insecure-no-auth" in refused.err

    not_first = here("keys", "create", "ci", "--scope", "deploy", "--offline")
    assert (not_first.code, "without an active key that can create and revoke keys" in not_first.err) == (6, True)
    secret = here.ok("keys", "create", "root", "--scope", "admin", "--offline", "-o", "json").json["secret"]
    assert here("keys", "create", "root", "--scope", "admin", "--offline").code == 5
    assert here("keys", "create", "x", "--scope", "everything", "--offline").code == 6
    with serve(here, "--host", "0.0.0.0") as record:
        assert record["authentication"] == "on"
        url = record["url"]
        # By an address, a command has the keys it is given, and nothing else.
        nothing = here("models", "--url", url)
        assert (nothing.code, "an API key is required" in nothing.err) == (9, True)
        wrong = here("models", "--url", url, **{KEY: secret[:-2] + "xx"})
        assert (wrong.code, "unknown API key" in wrong.err) == (9, True)
        assert secret[:-2] not in wrong.err
        assert here.ok("models", "--url", url, "-o", "json", **{KEY: secret}).json == []
        # A process that can read the data folder needs no key.
        assert here.ok("models", "-o", "json").json == []
        key_file = here.data_dir / "up.key"
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        assert {one["name"]: one["state"] for one in here.ok("keys", "list", "-o", "json").json} == {"root": "active"}

        # A key for another client, in a file.
        made = here.ok("keys", "create", "ci", "--scope", "read", "--expires", "90d", "--out", "ci.key")
        assert stat.S_IMODE((here.folder / "ci.key").stat().st_mode) == 0o600
        ci = (here.folder / "ci.key").read_text().strip()
        assert ci not in made.out + made.err
        assert here("keys", "create", "ci2", "--scope", "read", "--out", "ci.key").code == 6
        here.ok("models", "--url", url, "--api-key-file", "ci.key")
        denied = here("keys", "list", "--url", url, "--api-key-file", "ci.key")
        assert (denied.code, "needs the scope 'admin'" in denied.err) == (9, True)
        assert "authentication" in here("doctor", "--url", url, "--api-key-file", "ci.key").out
        shown = here.ok("keys", "show", "ci").out
        assert "read" in shown
        assert ci not in shown
        here.ok("keys", "revoke", "ci")
        assert here("models", "--url", url, "--api-key-file", "ci.key").code == 9
        assert here("models", "--url", url, "--api-key-file", "missing.key").code == 6

        # The last key is lost: a user who can write to the bucket creates another one while it runs.
        here.ok("keys", "revoke", "root", "--offline")
        rescued = here.ok("keys", "create", "root", "--scope", "admin", "--offline", "-o", "json").json["secret"]
        here.ok("keys", "list", "--url", url, **{KEY: rescued})
    assert not key_file.exists()
    written = (here.folder / "serve.log").read_text()
    for one in (secret, ci, rescued):
        assert one not in written
        assert one.split("_", 2)[2] not in written


def test_missing_keys_are_reported_prominently(here: Cli) -> None:
    with serve(here) as record:
        assert record["authentication"] == "off-loopback"
        report = here("doctor")
        assert "off-loopback" in report.out
        assert "every process on this machine can do everything" in report.out
        here.ok("models")
        assert stat.S_IMODE(here.data_dir.stat().st_mode) == stat.S_IMODE((here.data_dir / "store").stat().st_mode)
        assert stat.S_IMODE(here.data_dir.stat().st_mode) == 0o700, "under any umask"
        # The first key changes what the file for other commands says.
        here.ok("keys", "create", "root", "--scope", "admin")
        deadline = time.monotonic() + 30
        while (said := json.loads((here.data_dir / "up.json").read_text()))["authentication"] != "on":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert said["warning"] == ""
    assert "authentication is off" in (here.folder / "serve.log").read_text()
    with serve(here, "--host", "0.0.0.0", "--insecure-no-auth") as record:
        assert record["authentication"] == "off-insisted"
        assert httpx.get(f"{record['url']}/v1/info").json()["warning"].startswith("AUTHENTICATION IS OFF")
    assert (here.folder / "serve.log").read_text().count("AUTHENTICATION IS OFF") >= 2  # the log, and what it prints


@pytest.mark.triton
def test_up_uses_the_local_key_without_configuration(fresh: Cli) -> None:
    fresh.ok("keys", "create", "root", "--scope", "admin", "--offline")
    said = fresh.ok("up", "--detach", "--port", 0)
    assert "warning" not in said.out
    assert fresh.ok("doctor").out.count("every request needs an API key") == 1
    url = fresh.ok("servers", "-o", "json").json and json.loads((fresh.data_dir / "up.json").read_text())["url"]
    assert fresh("servers", "--url", url).code == 9
    # Histories name the key, and for whom it was used.
    fresh.ok("keys", "create", "ci", "--scope", "deploy")
    made = fresh.ok("keys", "show", "ci", "-o", "json").json
    assert made["created_by"] == "local/ada"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def test_tls_with_a_certificate(here: Cli, authority: trustme.CA) -> None:
    certificate, ca, other = here.folder / "server.pem", here.folder / "ca.pem", here.folder / "other.pem"
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(certificate)
    authority.cert_pem.write_to_path(ca)
    trustme.CA().cert_pem.write_to_path(other)
    here.ok("keys", "create", "root", "--scope", "admin", "--offline", "--out", "root.key")
    with serve(here, "--tls-cert", certificate) as record:
        url = record["url"]
        assert url.startswith("https://")
        here.ok("models", "--url", url, "--ca-file", ca, "--api-key-file", "root.key")
        here.ok("models")  # the `up` of this machine: exactly its certificate is trusted
        for trusted in ((), ("--ca-file", other)):
            failed = here("models", "--url", url, "--api-key-file", "root.key", *trusted)
            assert (failed.code, "CERTIFICATE_VERIFY_FAILED" in failed.err) == (4, True)
        # Nothing is answered without encryption.
        with pytest.raises(httpx.HTTPError):
            httpx.get(url.replace("https://", "http://"))
        assert httpx.get(f"{url}/healthz", verify=ssl.create_default_context(cafile=str(ca))).status_code == 200


def test_tls_with_client_certificates(here: Cli, authority: trustme.CA) -> None:
    certificate, key, ca = (here.folder / name for name in ("server.pem", "server.key", "ca.pem"))
    issued = authority.issue_cert("127.0.0.1")
    with certificate.open("wb") as chain:
        for part in issued.cert_chain_pems:
            chain.write(part.bytes())
    encrypted = subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-v2", "aes256", "-passout", "pass:tls-secret-1f2e"],
        input=issued.private_key_pem.bytes(),
        capture_output=True,
        check=True,
    )
    key.write_bytes(encrypted.stdout)
    authority.cert_pem.write_to_path(ca)
    ours = here.folder / "client.pem"
    authority.issue_cert("ada@example.org").private_key_and_cert_chain_pem.write_to_path(ours)
    options = ("--tls-cert", certificate, "--tls-key", key, "--tls-client-ca", ca)
    password = {"CONTROLPLANE_API__TLS__KEY_PASSWORD": "tls-secret-1f2e"}
    with serve(here, *options, **password) as record:
        url = record["url"]
        assert here("models", "--url", url, "--ca-file", ca).code == 4
        here.ok("models", "--url", url, "--ca-file", ca, "--client-cert", ours)
    assert "tls-secret" not in (here.folder / "serve.log").read_text()
    # What cannot work is said before anything is started.
    locked = here("serve", *options, CONTROLPLANE_API__TLS__KEY_PASSWORD="another")
    assert (locked.code, "failed to set up TLS" in locked.err) == (6, True)
    assert "another" not in locked.err
    missing = here("serve", "--tls-cert", "none.pem")
    assert (missing.code, "No such file" in missing.err) == (6, True)
    assert here("serve", "--tls-key", key).code == 6


def test_local_key_is_not_sent_to_an_explicit_url(here: Cli) -> None:
    """The data folder's key stays with the control plane that wrote it, and a key in the clear is warned of."""
    with serve(here):
        port = free_port()
        listener = (
            "import socket,sys; s=socket.create_server(('127.0.0.1',int(sys.argv[1]))); print('up',flush=True); "
            "c=s.accept()[0]; sys.stdout.write(c.recv(65536).decode())"
        )
        with subprocess.Popen([sys.executable, "-c", listener, str(port)], stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "up\n"
            assert here("models", "--url", f"http://127.0.0.1:{port}").code == 4
            heard = other.stdout.read()
        assert "x-actor" in heard.lower()
        assert "authorization" not in heard.lower()
    key: dict[str, Any] = {KEY: "tck_0_x"}
    loud = here("models", "--url", "http://control.invalid:1", **key)
    assert "is sent unencrypted" in loud.err
    assert os.environ.get(KEY) is None
