"""What we rely on in Triton, each as a test on the real server. docs/internals/triton.md lists them."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from controlplane.domain.deployment import DeploymentSettings
from controlplane.domain.manifest import Format
from controlplane.domain.names import candidate_name
from controlplane.errors import InferenceError, LoadRefusedError, TritonTimeoutError
from controlplane.triton.model_config import build_config
from tests.support.triton_models import model_files, scale
from tests.support.triton_serving import Serving

pytestmark = pytest.mark.triton
ONE = {"x": np.ones((1, 3), np.float32)}


async def answering(serving: Serving, name: str) -> tuple[float, int]:
    """The factor and the version that answer who names no version."""
    outputs, version = await serving.client.infer(name, ONE)
    return float(outputs["y"][0, 0]), version


async def states(serving: Serving, name: str) -> dict[int, str]:
    return {entry.version: entry.state for entry in await serving.client.index() if entry.model == name}


@pytest.fixture
async def two(serving: Serving, tmp_path: Path) -> str:
    """A model with the versions 1 (x 2) and 2 (x 3) staged, none loaded."""
    name = serving.name()
    for version in (1, 2):
        serving.stage(name, version, scale(tmp_path / f"{version}.onnx", 1.0 + version))
    return name


async def test_highest_loaded_version_answers_at_once(serving: Serving, two: str, tmp_path: Path) -> None:
    model = scale(tmp_path / "m.onnx", 1.0)
    await serving.load(two, model, [1])
    assert await answering(serving, two) == (2.0, 1)
    await serving.load(two, model, [1, 2])
    assert await answering(serving, two) == (3.0, 2)
    await serving.load(two, model, [1])
    assert await answering(serving, two) == (2.0, 1)


async def test_version_policy_change_does_not_reload_kept_versions(serving: Serving, two: str, tmp_path: Path) -> None:
    model = scale(tmp_path / "m.onnx", 1.0)
    await serving.load(two, model, [1])
    before = serving.server.processes_of(two, 1)
    await serving.load(two, model, [1, 2])
    assert serving.server.processes_of(two, 1) == before
    await serving.load(two, model, [1])
    assert serving.server.processes_of(two, 1) == before


async def test_staging_and_writing_config_do_not_reload_kept_versions(
    serving: Serving, two: str, tmp_path: Path
) -> None:
    """`config.pbtxt` may be written after a load with an override, and versions may come, without a reload."""
    model = scale(tmp_path / "m.onnx", 1.0)
    await serving.load(two, model, [1])
    before = serving.server.processes_of(two, 1)
    both = build_config(two, model.manifest, DeploymentSettings(), [1, 2])
    assert serving.repository.write_config(two, both)
    serving.stage(two, 3, scale(tmp_path / "3.onnx", 4.0))
    await serving.client.load(two, both)
    assert serving.server.processes_of(two, 1) == before
    assert await answering(serving, two) == (3.0, 2)
    # And a changed file with an unchanged policy.
    assert serving.repository.write_config(two, build_config(two, model.manifest, DeploymentSettings(), [1]))
    await serving.client.load(two, both)
    assert serving.server.processes_of(two, 1) == before


async def test_incomplete_folders_are_not_listed_as_models(serving: Serving, two: str, tmp_path: Path) -> None:
    (serving.repository.root / ".incomplete-gone").mkdir()
    await serving.load(two, scale(tmp_path / "m.onnx", 1.0), [1])
    assert await states(serving, two) == {1: "READY"}
    assert not [entry for entry in await serving.client.index() if "incomplete" in entry.model]
    (serving.repository.root / ".incomplete-gone").rmdir()


async def test_changed_settings_reload_the_version(serving: Serving, two: str, tmp_path: Path) -> None:
    model = scale(tmp_path / "m.onnx", 1.0)
    await serving.load(two, model, [1])
    before = serving.server.processes_of(two, 1)
    await serving.load(two, model, [1], DeploymentSettings(parameters={"intra_op_thread_count": "1"}))
    assert set(serving.server.processes_of(two, 1)) - set(before)


async def test_same_config_does_not_reload(serving: Serving, two: str, tmp_path: Path) -> None:
    """A 200 may be a no-op, here a welcome one."""
    model = scale(tmp_path / "m.onnx", 1.0)
    await serving.load(two, model, [1])
    before = serving.server.processes_of(two)
    await serving.load(two, model, [1])
    assert serving.server.processes_of(two) == before


async def test_loading_the_reported_configuration_reloads_versions(serving: Serving, two: str, tmp_path: Path) -> None:
    """Triton fills in fields; a load that sends them loads every version again."""
    model = scale(tmp_path / "m.onnx", 1.0)
    await serving.load(two, model, [1])
    before = serving.server.processes_of(two, 1)
    present = await serving.client.model_config(two)
    await serving.client.load(two, present)
    assert set(serving.server.processes_of(two, 1)) - set(before)


async def test_second_link_to_a_file_reloads_its_version(serving: Serving, two: str, tmp_path: Path) -> None:
    """Triton looks at the inode's change time, too. Only the version concerned, and only at the next load."""
    model = scale(tmp_path / "m.onnx", 1.0)
    await serving.load(two, model, [1, 2])
    before = {version: serving.server.processes_of(two, version) for version in (1, 2)}
    os.link(serving.repository.root / two / "2" / "model.onnx", tmp_path / "another")
    assert serving.server.processes_of(two, 2) == before[2]
    await serving.load(two, model, [1, 2])
    assert serving.server.processes_of(two, 1) == before[1]
    assert set(serving.server.processes_of(two, 2)) > set(before[2])


async def test_other_entry_in_model_folder_reloads_all_versions(serving: Serving, two: str, tmp_path: Path) -> None:
    """Why work in progress lies in the repository's root and not in the model's folder."""
    model = scale(tmp_path / "m.onnx", 1.0)
    await serving.load(two, model, [1])
    before = serving.server.processes_of(two, 1)
    (serving.repository.root / two / ".incomplete-9").mkdir()
    await serving.load(two, model, [1])
    assert set(serving.server.processes_of(two, 1)) > set(before)


async def test_promoting_candidate_and_removing_old_version_do_not_reload(
    serving: Serving, two: str, tmp_path: Path
) -> None:
    """The whole way forward, as the reconciler goes it: candidate, proof, own name, clean-up, end of the bake."""
    model, third = scale(tmp_path / "m.onnx", 1.0), scale(tmp_path / "3.onnx", 4.0)
    await serving.load(two, model, [1])
    candidate = candidate_name(two)
    serving.names.add(candidate)
    await serving.client.load(candidate, serving.stage(candidate, 3, third))
    assert (await answering(serving, candidate)) == (4.0, 3)
    await serving.client.unload(candidate)
    serving.stage(two, 3, third)
    assert serving.repository.staged().get(candidate) is None
    before = serving.server.processes_of(two, 1)
    await serving.load(two, model, [1, 3])
    assert serving.server.processes_of(two, 1) == before
    newcomer = serving.server.processes_of(two, 3)
    await serving.load(two, model, [3])
    assert serving.server.processes_of(two, 3) == newcomer
    while (await states(serving, two))[1] != "UNAVAILABLE":
        await asyncio.sleep(0.05)
    serving.repository.remove_version(two, 1)
    await serving.load(two, model, [3])
    assert serving.server.processes_of(two, 3) == newcomer


async def test_renewed_version_is_reloaded(serving: Serving, two: str, tmp_path: Path) -> None:
    """This replaces a dead stub without an unload: the new instance is up before the old one ends."""
    model = scale(tmp_path / "m.onnx", 1.0)
    await serving.load(two, model, [1])
    os.kill(serving.server.processes_of(two)[0], signal.SIGKILL)
    with pytest.raises(InferenceError, match="not healthy"):
        await serving.client.infer(two, ONE)
    (serving.repository.root / two / "config.pbtxt").touch()
    await serving.load(two, model, [1])
    with pytest.raises(InferenceError, match="not healthy"):
        await serving.client.infer(two, ONE)
    serving.repository.renew(two, [1])
    await serving.load(two, model, [1])
    assert await answering(serving, two) == (2.0, 1)


async def test_broken_version_fails_whole_load_and_loaded_one_keeps_serving(
    serving: Serving, two: str, tmp_path: Path
) -> None:
    model = scale(tmp_path / "m.onnx", 1.0)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    serving.stage(two, 3, model_files(broken, Format.ONNX, model.manifest.signature))
    await serving.load(two, model, [1])
    with pytest.raises(LoadRefusedError, match="ONNX Runtime cannot open"):
        await serving.load(two, model, [1, 2, 3])
    assert await answering(serving, two) == (2.0, 1)
    assert (await states(serving, two))[1] == "READY"
    # The good newcomer went down with the broken one.
    assert serving.server.processes_of(two, 2) == [] or (await states(serving, two)).get(2) != "READY"


async def test_version_that_is_not_on_disk_is_refused(serving: Serving, two: str, tmp_path: Path) -> None:
    model = scale(tmp_path / "m.onnx", 1.0)
    await serving.load(two, model, [1])
    with pytest.raises(LoadRefusedError):
        await serving.load(two, model, [8])
    assert await answering(serving, two) == (2.0, 1)


async def test_refused_config_is_reported_with_tritons_reason(serving: Serving, two: str, tmp_path: Path) -> None:
    config = build_config(two, scale(tmp_path / "m.onnx", 1.0).manifest, DeploymentSettings(), [1])
    config["backend"] = "no-such-backend"
    with pytest.raises(LoadRefusedError, match="no-such-backend"):
        await serving.client.load(two, config)
    config["backend"] = "onnxruntime"
    config["dynamic_batching"] = {"preferred_batch_size": [99]}
    with pytest.raises(LoadRefusedError, match="preferred"):
        await serving.client.load(two, config)


async def test_version_switches_lose_no_request_of_busy_client(serving: Serving, two: str, tmp_path: Path) -> None:
    model = scale(tmp_path / "m.onnx", 1.0)
    await serving.load(two, model, [1])
    config = await serving.client.model_config(two)
    stop = asyncio.Event()
    seen: list[tuple[float, int]] = []

    async def loop() -> None:
        while not stop.is_set():
            outputs, version = await serving.client.infer(two, ONE, config=config)
            seen.append((float(outputs["y"][0, 0]), version))

    loops = [asyncio.create_task(loop()) for _ in range(2)]
    for versions in ([1, 2], [1], [1, 2], [2], [1, 2], [1]):
        await serving.load(two, model, versions)
        before = len(seen)
        while len(seen) < before + 20 and not any(task.done() for task in loops):
            await asyncio.sleep(0.005)
    stop.set()
    await asyncio.gather(*loops)
    assert set(seen) == {(2.0, 1), (3.0, 2)}


async def test_model_with_dead_stub_stays_ready_but_fails_inference(serving: Serving, two: str, tmp_path: Path) -> None:
    model = scale(tmp_path / "m.onnx", 1.0)
    await serving.load(two, model, [1])
    os.kill(serving.server.processes_of(two)[0], signal.SIGKILL)
    with pytest.raises(InferenceError, match="not healthy"):
        await serving.client.infer(two, ONE)
    assert await states(serving, two) == {1: "READY"}
    assert await serving.client.ready(two)
    # A load with the same configuration is a no-op and does not replace the stub.
    await serving.load(two, model, [1])
    with pytest.raises(InferenceError, match="not healthy"):
        await serving.client.infer(two, ONE)
    # Triton never gets it out of UNLOADING; its process is gone, so we go on.
    await serving.client.unload(two)
    assert await states(serving, two) == {1: "UNLOADING"}
    await serving.load(two, model, [1])
    assert await answering(serving, two) == (2.0, 1)


@pytest.mark.long  # Triton's Python backend crashes now and then if its stub is stopped while it starts
async def test_load_that_hangs_ends_at_its_deadline(serving: Serving, tmp_path: Path) -> None:
    """The stub is stopped while it starts, so that the load waits for it; other models go on."""
    model = scale(tmp_path / "m.onnx", 1.0)
    name, other = serving.name("stuck"), serving.name("other")
    serving.stage(name, 1, model)
    serving.stage(other, 1, model)
    impatient = serving.client.__class__(
        "test", serving.client.grpc_url, timeouts=type(serving.client.timeouts)(load_seconds=1.0)
    )
    load = asyncio.create_task(impatient.load(name, build_config(name, model.manifest, DeploymentSettings(), [1])))
    deadline = time.monotonic() + 10
    while not (stubs := serving.server.processes_of(name)) and time.monotonic() < deadline:
        await asyncio.sleep(0)
    os.kill(stubs[0], signal.SIGSTOP)
    try:
        with pytest.raises(TritonTimeoutError, match=f"load of {name}"):
            await load
        await serving.load(other, model)
        assert (await answering(serving, other))[1] == 1
    finally:
        os.kill(stubs[0], signal.SIGCONT)
        await impatient.close()
    # What was not cancelled is done later.
    while (await states(serving, name)).get(1) != "READY" and time.monotonic() < deadline + 20:
        await asyncio.sleep(0.05)
    assert (await states(serving, name))[1] == "READY"


async def test_unloading_model_that_is_not_loaded_succeeds(serving: Serving, two: str) -> None:
    await serving.client.unload(two)
    await serving.client.unload("never-heard-of")


async def test_folder_with_leading_zero_is_not_a_version(serving: Serving, two: str, tmp_path: Path) -> None:
    model = scale(tmp_path / "m.onnx", 1.0)
    (serving.repository.root / two / "03").mkdir()
    with contextlib.suppress(LoadRefusedError):
        await serving.load(two, model, [1, 3])
    assert 3 not in await states(serving, two)
    assert serving.repository.staged()[two] == {1, 2}


async def test_model_that_was_never_loaded_is_not_listed(serving: Serving, two: str) -> None:
    assert await states(serving, two) == {}


async def test_folders_that_appear_and_vanish_do_not_fail_the_index(serving: Serving) -> None:
    """It fails Triton's own call now and then; the client asks again."""
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            folders = [serving.repository.root / f".incomplete-{number}" for number in range(20)]
            for folder in folders:
                folder.mkdir()
            for folder in folders:
                folder.rmdir()

    refused: list[str] = []
    coming = asyncio.create_task(asyncio.to_thread(come_and_go))
    try:
        async with asyncio.timeout(120), InferenceServerClient(serving.server.grpc_url) as raw:
            while len(refused) < 10:
                await serving.client.index()
                try:
                    await raw.get_model_repository_index()
                except InferenceServerException as error:
                    refused.append(str(error))
    finally:
        stop.set()
        await coming
    assert all("failed to stat file" in one for one in refused), refused


async def test_backend_library_in_a_model_folder_replaces_the_backend(
    serving: Serving, two: str, tmp_path: Path
) -> None:
    """A file of an artifact with this name runs in the server's process, so such artifacts need the scope `code`."""
    model = scale(tmp_path / "m.onnx", 1.0)
    for folder in (serving.repository.root / two, serving.repository.root / two / "1"):
        library = folder / "libtriton_onnxruntime.so"
        library.write_bytes(b"no library")
        with pytest.raises(LoadRefusedError, match=f"unable to load shared library: {library}"):
            await serving.load(two, model, [1])
        library.unlink()
    (serving.repository.root / two / "1" / "model.py").write_text("raise RuntimeError('executed')")
    await serving.load(two, model, [1])
    assert await answering(serving, two) == (2.0, 1)
