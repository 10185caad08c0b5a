"""`tritonctl import` of a repository folder against a running control plane."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from tritonclient.grpc import InferenceServerClient

from tests.cli.conftest import Cli
from tests.support.s3server import S3Server
from tests.support.triton import running_triton
from tests.triton_format import directories

pytestmark = pytest.mark.slow


def write(folder: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ONNX versions, a Python model, an ensemble, a broken configuration, and folders that are no models."""
    root = tmp_path_factory.mktemp("repository")
    write(
        root / "import-onnx", directories.onnx(2.0, folder=3) | {"11/model.onnx": directories.onnx(4.0)["1/model.onnx"]}
    )
    write(root / "import-python", directories.scaling())
    write(root / "import-ensemble", {"config.pbtxt": directories.ENSEMBLE, "1/.keep": b""})
    write(root / "import-broken", {"config.pbtxt": b"nonsense", "1/model.onnx": b"x"})
    write(root / "import-bare", {"1/model.onnx": b"x"})
    write(root / ".git", {"1/x": b""})
    write(root, {"README.md": b"no model"})
    return root


def results(cli: Cli, *arguments: object, code: int) -> dict[tuple[str, int], tuple[str, int | None]]:
    done = cli("import", *arguments, "-o", "json")
    assert done.code == code, done.err
    return {(row["model"], row["folder"]): (row["result"], row["version"]) for row in done.json["items"]}


def test_repository_is_imported_once(cli: Cli, repository: Path) -> None:
    refused = {
        ("import-bare", 1): ("refused", None),
        ("import-broken", 1): ("refused", None),
    }
    new = {
        ("import-ensemble", 1): ("would import", None),
        ("import-onnx", 3): ("would import", None),
        ("import-onnx", 11): ("would import", None),
    }
    assert results(cli, repository, "--dry-run", code=7) == {
        **refused,
        **new,
        ("import-python", 1): ("would import", None),
    }
    assert cli("show", "import-onnx").code == 3, "a dry run publishes nothing"

    first = results(cli, repository, code=7)
    assert first == {
        **refused,
        ("import-ensemble", 1): ("imported", 1),
        ("import-onnx", 3): ("imported", 3),
        ("import-onnx", 11): ("imported", 11),
        ("import-python", 1): ("imported", 1),
    }
    again = results(cli, repository, code=7)
    assert again == {key: ("unchanged", version) if version else (what, None) for key, (what, version) in first.items()}

    shown = " ".join(cli.ok("show", "import-ensemble").out.split())
    assert "import-ensemble:1 ensemble (not deployed: a deploy pins the members' versions) └─ x ─> [a] ─> y" in shown


def test_changed_version_is_imported_as_a_new_one(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "changing", directories.scaling(1.0))
    assert results(cli, tmp_path, code=0) == {("changing", 1): ("imported", 1)}
    write(tmp_path / "changing", directories.scaling(2.0))
    assert results(cli, tmp_path, code=0) == {("changing", 1): ("imported", 2)}
    write(tmp_path / "changing", directories.scaling(3.0))
    assert "published under another number: changing:1 exists with other content" in cli.ok("import", tmp_path).out
    assert results(cli, tmp_path, code=0) == {("changing", 1): ("unchanged", 3)}


def test_number_that_the_registry_cannot_give_is_replaced(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "numbered", directories.scaling(1.0) | {"20240115/model.py": b"pass"})
    assert results(cli, tmp_path, code=0) == {
        ("numbered", 1): ("imported", 1),
        ("numbered", 20240115): ("imported", 20240115),
    }
    write(tmp_path / "numbered", {"7/model.py": b"7", "1700000000/model.py": b"17"})
    rows = results(cli, tmp_path, code=0)
    assert rows["numbered", 7] == ("imported", 20240116)
    assert rows["numbered", 1700000000] == ("imported", 20240117)
    pushed = cli("push", "numbered", tmp_path / "numbered", "--version", 7, "--number", 9)
    assert pushed.code == 5
    assert "versions have ascending numbers, and the newest is 20240117; use 20240118" in pushed.err


def test_folder_without_models_is_refused(cli: Cli, tmp_path: Path) -> None:
    assert "contains no model directory" in cli("import", tmp_path).err


def test_push_of_one_of_several_versions(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path, directories.onnx(folder=3) | {"11/model.onnx": b"x"})
    assert "version folders 3, 11" in cli("push", "chosen", tmp_path).err
    assert "no version folder 4" in cli("push", "chosen", tmp_path, "--version", 4).err
    result = cli.ok("push", "chosen", tmp_path, "--version", 3, "-o", "json").json
    assert (result["version"], result["format"]) == (1, "triton")
    cli.ok("pull", "chosen:1", tmp_path / "pulled")
    assert cli.ok("push", "chosen", tmp_path / "pulled", "-o", "json").json["unchanged"]


def test_repository_in_a_bucket_is_imported(cli: Cli, moto: S3Server) -> None:
    bucket = moto.new_bucket()
    files = directories.onnx(2.0, folder=3) | {"11/model.onnx": directories.onnx(4.0)["1/model.onnx"]}
    client = moto.client()
    objects = {f"bucket-onnx/{path}": content for path, content in files.items()}
    objects |= {"bucket-broken/config.pbtxt": b"nonsense", "bucket-broken/1/model.onnx": b"x", "README.md": b"none"}
    objects |= {"bucket-onnx/": b"", "bucket-onnx/.cache/x": b"hidden", ".git/1/x": b""}
    for key, content in objects.items():
        client.put_object(Bucket=bucket, Key=f"some/where/{key}", Body=content)
    client.close()
    settings: dict[str, Any] = {
        "CONTROLPLANE_STORE__ACCESS_KEY_ID": moto.access_key_id,
        "CONTROLPLANE_STORE__SECRET_ACCESS_KEY": moto.secret_access_key,
    }
    source = (f"s3://{bucket}/some/where", "--endpoint", moto.endpoint_url)

    def run(*more: str) -> dict[tuple[str, int], tuple[str, int | None]]:
        done = cli("import", *source, *more, "-o", "json", **settings)
        assert done.code == 7, done.err
        return {(row["model"], row["folder"]): (row["result"], row["version"]) for row in done.json["items"]}

    broken = {("bucket-broken", 1): ("refused", None)}
    one, two = ("bucket-onnx", 3), ("bucket-onnx", 11)
    assert run("--dry-run") == {**broken, one: ("would import", None), two: ("would import", None)}
    assert run() == {**broken, one: ("imported", 3), two: ("imported", 11)}
    assert run() == {**broken, one: ("unchanged", 3), two: ("unchanged", 11)}

    missing = cli("import", f"s3://{bucket}-none/x", "--endpoint", moto.endpoint_url, **settings)
    assert missing.code == 4
    assert "does not exist" in missing.err
    empty = cli("import", f"s3://{bucket}/nothing", "--endpoint", moto.endpoint_url, **settings)
    assert "contains no model directory" in empty.err


@pytest.mark.triton
def test_loaded_models_of_a_running_triton_are_imported(cli: Cli, tmp_path: Path) -> None:
    repository = tmp_path / "model_repository"
    write(repository / "running", directories.scaling(2.0) | {"4/model.py": directories.scaling()["1/model.py"]})
    write(repository / "idle", directories.scaling(3.0))
    with running_triton(tmp_path) as triton, InferenceServerClient(triton.server.grpc_url) as client:
        client.load_model("running")  # without a version policy, only the newest version
        source = triton.server.http_url.replace("http://", "triton://")
        assert results(cli, source, repository, "--dry-run", code=0) == {("running", 4): ("would import", None)}
        assert results(cli, source, repository, code=0) == {("running", 4): ("imported", 4)}
        assert results(cli, source, repository, code=0) == {("running", 4): ("unchanged", 4)}
        other = cli("import", source, tmp_path / "triton")
        assert other.code == 7
        assert "the server has loaded it, but there is no folder" in other.out
        grpc = cli("import", f"triton://{triton.server.grpc_url}", repository)
        assert grpc.code == 4
        assert "give the port of its HTTP service" in grpc.err
    assert "no Triton answers" in cli("import", source, repository).err
    assert "triton://HOST:PORT" in cli("import", source).err
    assert "is not supported" in cli("import", "gs://bucket/x").err


def test_import_continues_after_the_control_plane_was_killed(fresh: Cli) -> None:
    count = 40
    for number in range(count):
        write(fresh.folder / "repository" / f"model-{number:02}", directories.scaling(float(number)))
    environment = {"CONTROLPLANE_TRITON__EMBEDDED": "false"}
    with fresh.up(**environment) as record:
        running = fresh.start("import", "repository")
        with httpx.Client(base_url=record["url"], trust_env=False) as http:
            end = time.monotonic() + 60
            while len(http.get("/v1/models").json()["items"]) < 2:
                assert time.monotonic() < end
                time.sleep(0.01)
        os.kill(record["pid"], signal.SIGKILL)
        output, _ = running.communicate(timeout=60)
        assert running.returncode == 4, output
    with fresh.up(**environment):
        rows = results(fresh, "repository", code=0)
        assert {version for _, version in rows.values()} == {1}, "a version was published twice"
        assert len(rows) == count
        assert {result for result, _ in rows.values()} == {"imported", "unchanged"}
        assert {result for result, _ in results(fresh, "repository", code=0).values()} == {"unchanged"}
