"""The SDK against one real control plane with a real Triton."""

from collections.abc import Iterator

import pytest

import tritonctl
from tests.cli.conftest import Cli


@pytest.fixture(scope="package")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The one `up` that the tests of this folder share."""
    root = tmp_path_factory.mktemp("sdk")
    cli = Cli(root / "data", root)
    with cli.up():
        yield cli


@pytest.fixture(scope="package")
def client(cli: Cli) -> Iterator[tritonctl.Client]:
    """A client that finds the `up` by its data folder."""
    with tritonctl.connect(data_dir=cli.data_dir, actor="ada", progress=False) as client:
        yield client
