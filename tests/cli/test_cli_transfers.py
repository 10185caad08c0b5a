"""Interrupted uploads and downloads, and downloads with a wrong digest."""

import json
import signal
from pathlib import Path

import httpx
import pytest

from tests.cli.conftest import Cli
from tests.support.faultproxy import Action, Fault, fault_proxy
from tests.support.models import affine_onnx
from tests.support.relay import relay_to

pytestmark = pytest.mark.triton

MIB = 1 << 20


def _url(cli: Cli) -> str:
    url: str = json.loads((cli.data_dir / "up.json").read_text())["url"]
    return url


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with 12 MiB of weights."""
    return affine_onnx(tmp_path_factory.mktemp("large") / "large.onnx", scale=5.0, reserve_mib=12)


def test_upload_resumes_automatically_after_a_lost_connection(cli: Cli, tmp_path: Path) -> None:
    model = affine_onnx(tmp_path / "broken-line.onnx", scale=6.0, reserve_mib=12)
    with relay_to(_url(cli)) as relay:
        relay.cut_after = 7 * MIB
        cli.ok("push", model, "--no-golden", "--url", relay.url)
        assert relay.cut_after is None, "the connection was never cut"
        # Not the bytes: a server that is still writing what came before refuses an offset, and the client sends again.
        assert relay.offsets[0] == 0
        assert relay.offsets[-1] > 0


def test_next_push_resumes_a_killed_one(cli: Cli, large: Path) -> None:
    with relay_to(_url(cli)) as relay:
        relay.stall_after = 7 * MIB
        pushing = cli.start("push", large, "--no-golden", "--url", relay.url)
        assert relay.stalled.wait(60)
        pushing.kill()
        pushing.communicate()
        relay.stall_after = None
        before = relay.sent
        again = cli.ok("push", large, "--no-golden", "--url", relay.url)
        assert "already uploaded" in again.err
        assert relay.sent - before < 8 * MIB
    assert cli.ok("show", "large", "-o", "json").json["entry"]["number"] == 1


def test_ctrl_c_ends_a_push_on_a_stalled_connection(cli: Cli, tmp_path: Path) -> None:
    model = affine_onnx(tmp_path / "interrupted.onnx", scale=8.0, reserve_mib=12)
    with relay_to(_url(cli)) as relay:
        relay.stall_after = 3 * MIB
        pushing = cli.start("push", model, "--url", relay.url)
        assert relay.stalled.wait(60)
        pushing.send_signal(signal.SIGINT)
        output, _ = pushing.communicate(timeout=60)
    assert pushing.returncode == 130
    assert "Traceback" not in output


def test_push_skips_files_that_the_server_has(cli: Cli, published: str, doubling: Path) -> None:
    again = cli.ok("push", "steady-copy", doubling)
    assert "nothing to upload" in again.err


def test_pull_resumes_and_fetches_nothing_twice(cli: Cli, tmp_path: Path) -> None:
    model = affine_onnx(tmp_path / "pulled.onnx", scale=7.0, reserve_mib=4)
    cli.ok("push", model, "--no-golden")
    with fault_proxy(_url(cli)) as proxy:
        proxy.inject(Fault(Action.CUT_RESPONSE, "GET", "/files/"))
        cli.ok("pull", "pulled", tmp_path / "there", "--url", proxy.endpoint_url)
        assert proxy.count("GET", "/files/") == 2
        assert (tmp_path / "there" / "model.onnx").read_bytes() == model.read_bytes()
        again = cli.ok("pull", "pulled:1", tmp_path / "there", "--url", proxy.endpoint_url)
        assert "already present" in again.out
        assert proxy.count("GET", "/files/") == 2
        # A local file with other content than the published one is downloaded again.
        (tmp_path / "there" / "model.onnx").write_bytes(b"changed")
        cli.ok("pull", "pulled:1", tmp_path / "there", "--url", proxy.endpoint_url)
        assert (tmp_path / "there" / "model.onnx").read_bytes() == model.read_bytes()


def test_pull_refuses_bytes_with_a_wrong_digest(cli: Cli, published: str, tmp_path: Path) -> None:
    with fault_proxy(_url(cli)) as proxy:
        proxy.inject(Fault(Action.FLIP, "GET", "/files/"))
        result = cli("pull", published, tmp_path / "there", "--url", proxy.endpoint_url)
    assert result.code == 1
    assert "the download was deleted" in result.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_response_of_another_server_is_an_error(cli: Cli) -> None:
    (server,) = cli.ok("servers", "-o", "json").json
    result = cli("models", "--url", server["http_url"])
    assert result.code == 3
    assert httpx.get(server["http_url"] + "/v1/models").status_code == 404
