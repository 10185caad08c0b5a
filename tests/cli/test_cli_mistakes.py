"""User errors: a one-line message with the cause and the fix, and an exit code for scripts."""

from pathlib import Path

import pytest

from tests.cli.conftest import Cli

pytestmark = pytest.mark.triton


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("ps nothere", 3, "'nothere' is not deployed"),
        ("show nothere:1", 3, "model 'nothere' does not exist"),
        ("show steady:9", 3, "steady has no version 9; its versions: 1"),
        ("show steady@nope", 3, "no alias 'nope'"),
        ("show steady:x", 6, "'x' is not a version number"),
        ("show steady:1@live", 6, "both a version and an alias"),
        ("show ../etc", 6, "not a valid model name"),
        ("alias steady 1", 6, "does not name an alias"),
        ("alias steady@latest 1", 6, "not an alias that can be set"),
        ("rm steady:1", 5, "it is the desired version of the deployment of steady"),
        ("rollback steady", 5, "no earlier revision"),
        ("push nofile.onnx", 6, "tritonctl push NAME PATH"),
        ("push steady nofile.onnx", 6, "no such file or folder: 'nofile.onnx'"),
        ("push hello.txt", 6, "the format of hello.txt is unknown"),
        ("push cut.onnx", 6, "truncated"),
        ("push cut.onnx --label git", 6, "'git' is invalid; use --label key=value"),
        ("push cut.onnx --metric a=b", 6, "'b' is not a number"),
        ("push cut.onnx --input x:FP99[1] --out y:FP32[1]", 6, "'FP99' is not a valid element type"),
        ("push cut.onnx --input x:FP32[1]", 6, "--out is missing"),
        ("push new.onnx --direct", 6, "does not support direct uploads"),
        ("validate cut.onnx", 6, "truncated"),
        ("convert steady:1 --to torchscript", 6, "onnx cannot be converted to torchscript"),
        ("convert ./nofile.pt2 --to onnx", 6, "no such file or folder: './nofile.pt2'"),
        ("deploy steady --set {", 6, "--set is not valid JSON"),
        ('deploy steady --set {"instance_count":0}', 6, "settings.instance_count"),
        ("infer steady --input bad.json", 6, "neither .npz nor JSON"),
        ("infer steady --input other.json", 6, "missing inputs: x; unknown inputs: z"),
        ("infer steady --input nofile.npz", 6, "cannot read nofile.npz"),
        ("infer steady --sample --version 7", 3, "7"),
        ("infer steady", 2, "--sample"),
        ("deplyo steady", 2, "Did you mean 'deploy'"),
        ("push", 2, "Missing argument"),
        ("--url http://127.0.0.1:9 ps", 4, "no control plane answers at http://127.0.0.1:9"),
        ("--url ftp://x ps", 4, "'ftp://x' is not a valid control-plane URL"),
        ("serve --triton gpu0", 6, "'gpu0' is invalid; use NAME=GRPC,HTTP,METRICS,REPOSITORY"),
    ],
)
def test_mistake_gives_one_line_and_its_exit_code(
    cli: Cli, published: str, doubling: Path, line: str, code: int, words: str
) -> None:
    (cli.folder / "cut.onnx").write_bytes(doubling.read_bytes()[:-20])
    (cli.folder / "new.onnx").write_bytes(doubling.read_bytes() + b"new")
    (cli.folder / "hello.txt").write_text("hello\n")
    (cli.folder / "bad.json").write_text('{"x": [[1, 2')
    (cli.folder / "other.json").write_text('{"z": [[1, 2, 3, 4]]}')
    result = cli(*line.split())
    assert words in " ".join(result.err.replace("│", " ").split()), result.err
    assert result.code == code


def test_deploy_of_unloadable_version_fails_with_the_reason(cli: Cli, doubling: Path) -> None:
    cli.ok("push", "unloadable", doubling)
    failed = cli("deploy", "unloadable", "--param", "intra_op_thread_count=many", "--wait")
    assert failed.code == 7
    assert "must be a number of threads" in failed.err
    assert cli("wait", "unloadable", "--timeout", 20).code == 7
    cli.ok("undeploy", "unloadable")


def test_json_output_contains_the_error(cli: Cli) -> None:
    result = cli("show", "nothere", "-o", "json")
    assert result.json["error"]["code"] == "not-found"
    assert result.json["error"]["exit_code"] == result.code == 3


def test_debug_prints_the_traceback(cli: Cli) -> None:
    import subprocess

    from tests.cli.conftest import TRITONCTL

    done = subprocess.run(
        [*TRITONCTL, "show", "nothere", "--debug"], env=cli.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert "Traceback" in done.stderr


def test_unconfirmed_rm_deletes_nothing(cli: Cli, published: str) -> None:
    assert cli("rm", published, stdin="n\n").code == 1
    assert published in cli.ok("models").out
