"""torch, skops and safetensors files are distinguished by content; files that would run code are not loaded."""

import contextlib
import io
import json
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import silero_vad
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.domain.manifest import Format
from controlplane.errors import InvalidArtifactError, InvalidInputError, UntrustedArtifactError
from converters.inspect import inspect_artifact

SILERO = Path(silero_vad.__file__).parent / "data"


class Bomb:
    """An object that creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def rewrite(source: Path, target: Path, changes: dict[str, bytes | None]) -> Path:
    """Copy an archive, and replace, add or (None) remove members by their name without the prefix."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        prefix = old.namelist()[0].split("/", 1)[0] + "/"
        for name in old.namelist():
            change = changes.get(name.removeprefix(prefix), b"")
            if change is not None:
                new.writestr(name, change or old.read(name))
        for name, data in changes.items():
            if data is not None and prefix + name not in old.namelist():
                new.writestr(prefix + name, data)
    return target


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp_ts", Format.TORCHSCRIPT),
        ("scaled_ts", Format.TORCHSCRIPT),
        ("mlp_pt2", Format.TORCH_EXPORT),
        ("block_pt", Format.PYTORCH),
        ("legacy_pt", Format.PYTORCH),
        ("mlp_safetensors", Format.PYTORCH),
        ("iris_skops", Format.SKLEARN),
    ],
)
def test_the_format_is_found_whatever_the_name(models, tmp_path, name, expected):
    disguised = tmp_path / "file.bin"
    disguised.write_bytes(getattr(models, name).read_bytes())
    assert inspect_artifact(disguised).format is expected


def test_torchscript_asks_for_a_signature():
    found = inspect_artifact(SILERO / "silero_vad.jit")
    assert found.format is Format.TORCHSCRIPT
    assert found.signature is None
    assert "give a signature" in found.hints[0]
    assert found.stored_path("silero_vad.jit") == "model.pt"


def test_safetensors_weights_are_counted():
    assert inspect_artifact(SILERO / "silero_vad_16k.safetensors").attributes["parameters"] == 309633


def test_skops_names_its_estimator(models):
    assert inspect_artifact(models.iris_skops).attributes["estimator"] == "sklearn.pipeline.Pipeline"


def test_a_plain_pickle_is_refused_and_not_run(tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(UntrustedArtifactError, match="trust"):
        inspect_artifact(path)
    assert inspect_artifact(path, trust=True).format is Format.SKLEARN
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_state_dict_with_code_in_it_is_refused_and_not_run(models, tmp_path, protocol):
    marker = tmp_path / "ran"
    payload = pickle.dumps({"weight": Bomb(marker)}, protocol=protocol)
    path = rewrite(models.block_pt, tmp_path / "evil.pt", {"data.pkl": payload})
    with pytest.raises(UntrustedArtifactError, match=r"touch|pathlib|getattr"):
        inspect_artifact(path)
    assert not marker.exists()


def test_a_pickled_module_is_refused_without_trust(models):
    with pytest.raises(UntrustedArtifactError, match=r"converter_nets\.Mlp"):
        inspect_artifact(models.whole_pt)
    assert inspect_artifact(models.whole_pt, trust=True).attributes["weights"] == "pickled module"


def program(models) -> dict:
    with zipfile.ZipFile(models.mlp_pt2) as archive:
        return json.loads(archive.read(next(n for n in archive.namelist() if n.endswith("models/model.json"))))


def test_export_programs_that_evaluate_code_are_refused(models, tmp_path):
    document = program(models)
    text = json.dumps(document).replace("Symbol('s", "__import__('os').system('touch ran') or Symbol('s", 1)
    path = rewrite(models.mlp_pt2, tmp_path / "a.pt2", {"models/model.json": text.encode()})
    with pytest.raises(UntrustedArtifactError, match="evaluates"):
        inspect_artifact(path)


def test_export_programs_that_call_python_are_refused(models, tmp_path):
    document = program(models)
    document["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"
    path = rewrite(models.mlp_pt2, tmp_path / "a.pt2", {"models/model.json": json.dumps(document).encode()})
    with pytest.raises(UntrustedArtifactError, match=r"torch\.os\.system"):
        inspect_artifact(path)


def test_export_programs_that_execute_guards_are_refused(models, tmp_path):
    document = {**program(models), "guards_code": ["exec('print(1)')"]}
    path = rewrite(models.mlp_pt2, tmp_path / "a.pt2", {"models/model.json": json.dumps(document).encode()})
    with pytest.raises(UntrustedArtifactError, match="executes"):
        inspect_artifact(path)


def test_export_programs_with_pickles_are_refused(models, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as inner:
        inner.writestr("x/data.pkl", pickle.dumps(Bomb(tmp_path / "ran")))
    for member in ("data/sample_inputs/model.pt", "data/weights/model.pt"):
        path = rewrite(models.mlp_pt2, tmp_path / "a.pt2", {member: buffer.getvalue()})
        with pytest.raises(UntrustedArtifactError, match="pickle"):
            inspect_artifact(path)
        assert inspect_artifact(path, trust=True).format is Format.TORCH_EXPORT
    config = json.dumps({"config": {"w": {"path_name": "weight_0", "use_pickle": True}}}).encode()
    path = rewrite(models.mlp_pt2, tmp_path / "b.pt2", {"data/weights/model_weights_config.json": config})
    with pytest.raises(UntrustedArtifactError, match="pickled objects"):
        inspect_artifact(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("member", ["../../evil", "/etc/evil", "a\\..\\evil"])
def test_archives_may_not_lead_outside_their_folder(tmp_path, member):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"x")
        archive.writestr("schema.json", b"{}")
    with pytest.raises(InvalidArtifactError, match="outside"):
        inspect_artifact(path)


@pytest.mark.parametrize("second", ["data.pkl", "DATA.pkl"])
def test_duplicate_member_is_rejected(models: Any, tmp_path: Path, second: str) -> None:
    """Python and torch read different ones of two pickles with one name, so torch could run an uninspected one."""
    marker = tmp_path / "ran"
    path = rewrite(models.block_pt, tmp_path / "twice.pt", {})
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings(action="ignore"):
        prefix = archive.namelist()[0].split("/", 1)[0]
        archive.writestr(f"{prefix}/{second}", pickle.dumps(Bomb(marker)))
    with pytest.raises(InvalidArtifactError, match=r"has the member .* twice"):
        inspect_artifact(path, trust=True)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as inner, warnings.catch_warnings(action="ignore"):
        inner.writestr("x/data.pkl", pickle.dumps({}))
        inner.writestr(f"x/{second}", pickle.dumps({}))
    path = rewrite(models.mlp_pt2, tmp_path / "a.pt2", {"data/sample_inputs/model.pt": buffer.getvalue()})
    with pytest.raises(UntrustedArtifactError, match="pickle"):
        inspect_artifact(path)
    assert not marker.exists()


def test_archive_bombs_are_refused(tmp_path):
    path = tmp_path / "a.skops"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", b"{}")
        for number in range(4):
            archive.writestr(f"{number}.npy", b"\0" * 8_000_000)
    with pytest.raises(InvalidArtifactError, match="claims to unpack"):
        inspect_artifact(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY", b"<html>", b"\x7fELF", b"PK\x03\x04"])
def test_file_that_is_not_a_model_gives_a_one_line_error(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(InvalidArtifactError) as caught:
        inspect_artifact(path)
    assert "\n" not in caught.value.message


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["mlp_ts", "mlp_pt2", "block_pt", "mlp_safetensors", "iris_skops"]), st.floats(0, 1))
def test_truncated_archive_gives_a_one_line_error(models, tmp_path_factory, name, share):
    whole = getattr(models, name).read_bytes()
    path = tmp_path_factory.mktemp("cut") / getattr(models, name).name
    path.write_bytes(whole[: int(share * (len(whole) - 1))])
    with pytest.raises(InvalidArtifactError) as caught:
        inspect_artifact(path)
    assert "\n" not in caught.value.message


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["mlp_ts", "mlp_pt2", "block_pt", "mlp_safetensors"]), st.data())
def test_damaged_archive_is_read_or_rejected(models, tmp_path_factory, name, data):
    whole = bytearray(getattr(models, name).read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("bad") / "file"
    path.write_bytes(whole)
    with contextlib.suppress(InvalidInputError):
        inspect_artifact(path)
