"""Processes that read GPUs through pynvml, on the stand-in for NVIDIA's library."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.ceph import must_run
from tests.support.nvml import Machine, compiled
from tests.support.nvml_reading import Reader


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        reason = "the stand-in for NVML is compiled, and there is no C compiler (cc)"
        if must_run():
            pytest.fail(reason)
        pytest.skip(reason)
    return compiled(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def machine(library: Path, tmp_path: Path) -> Machine:
    """A machine; without `Machine.has` it has a driver and no GPU."""
    machine = Machine(library, tmp_path / "gpus")
    machine.has()
    return machine


@pytest.fixture
def reader(machine: Machine) -> Iterator[Callable[..., Reader]]:
    """Starts readers on the machine."""
    started = []

    def start(*uuids: str, on: Machine = machine) -> Reader:
        started.append(Reader(on, uuids))
        return started[-1]

    yield start
    codes = [one.end() for one in started]
    assert codes == [0] * len(codes)
