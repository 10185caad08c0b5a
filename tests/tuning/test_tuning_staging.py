"""The copy's files are its own, whatever was staged first: a link that ends would cost a loaded version a reload."""

from pathlib import Path

import pytest

from controlplane.domain.names import candidate_name, tuning_name
from controlplane.triton.repository import ModelRepository


@pytest.mark.parametrize("order", [("m", "m~tune"), ("m~candidate", "m~tune"), ("m~tune", "m"), ("m~tune", "other")])
def test_tuned_copy_shares_no_file_with_the_deployed_version(tmp_path: Path, order: tuple[str, str]) -> None:
    assert {candidate_name("m"), tuning_name("m")} == {"m~candidate", "m~tune"}
    blob = tmp_path / "blob"
    blob.write_bytes(b"weights")
    repository = ModelRepository(tmp_path / "repository")
    for name in order:
        repository.stage(name, 1, {"model.onnx": blob})
    kept, gone = sorted(order, key="m~tune".__eq__)
    file = repository.root / kept / "1" / "model.onnx"
    assert not file.samefile(repository.root / gone / "1" / "model.onnx")
    before = file.stat().st_ctime_ns
    assert repository.remove_model(gone)
    assert file.stat().st_ctime_ns == before
    assert repository.staged() == {kept: {1}}
