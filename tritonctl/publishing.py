"""The options and files of a publication."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from controlplane.cli.workflows import convert, push
from controlplane.cli.workflows.tensors import save_npz, to_protocol
from controlplane.domain.arrays import Array

_SOURCES = frozenset({".pt2", ".skops", ".pkl", ".joblib", ".ubj", ".json", ".txt", ".safetensors"})
"""Suffixes of files that Triton runs only after a conversion."""

Target = Literal["onnx", "torchscript"]


class Options:
    """What `Client.push` passes on to a publication or a conversion."""

    def __init__(
        self,
        target: Target,
        aliases: tuple[str, ...],
        labels: dict[str, str],
        metrics: dict[str, float],
        reason: str,
        trust: bool,
        timeout: float | None,
    ) -> None:
        self._target: Target = target
        self._aliases = aliases
        self._labels = labels
        self._metrics = metrics
        self._reason = reason
        self._trust = trust
        self.timeout = timeout

    def publication(self, samples: Path | None) -> push.PublishOptions:
        """Return the options of a publication."""
        return push.PublishOptions(
            samples=samples,
            labels=self._labels,
            metrics=self._metrics,
            aliases=self._aliases,
            reason=self._reason,
            trust=self._trust,
        )

    def conversion(self, model: str, samples: Path | None) -> convert.Conversion:
        """Return the options of a conversion."""
        return convert.Conversion(
            self._target,
            {"target": self._target} | ({"trust": True} if self._trust else {}),
            model=model,
            samples=samples,
            labels=self._labels,
            metrics=self._metrics,
            aliases=self._aliases,
            reason=self._reason,
        )


@contextmanager
def npz_file(samples: Mapping[str, Array] | None, folder: Path) -> Iterator[Path | None]:
    """Provide arrays as an ``.npz`` file; None without arrays."""
    if not samples:
        yield None
        return
    path = folder / "samples.npz"
    with path.open("wb") as file:
        save_npz(file, [to_protocol(name, array) for name, array in samples.items()])
    yield path


def is_source(path: Path) -> bool:
    """Return whether Triton runs the files only after a conversion."""
    if path.is_dir():
        return (path / "config.json").is_file() and not (path / "config.pbtxt").exists()
    return path.suffix.lower() in _SOURCES
