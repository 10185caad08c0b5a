"""TorchScript files that Triton's own PyTorch backend cannot run, or runs with unexpected results."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


class Named(nn.Module):
    """Returns a dictionary."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": x * 2, "mask": x > 0}


class WithList(nn.Module):
    """Returns a tensor and a list of tensors."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return x * 2, [x, x + 1]


class WithNumber(nn.Module):
    """Returns a tensor and a number."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, float]:
        return x * 2, 0.5


class Total(nn.Module):
    """Returns a tensor without dimensions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum()


class Pair(nn.Module):
    """Has two arguments, and nothing in the file says their types."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a + b, (a * b).sum(1)


class Optionally(nn.Module):
    """Has an argument that may be left out in PyTorch."""

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return x if bias is None else x + bias


class Repeated(nn.Module):
    """Has an argument that is a number."""

    def forward(self, x: torch.Tensor, times: int) -> torch.Tensor:
        return x * times


class Keyed(nn.Module):
    """Takes a dictionary, which Triton's PyTorch backend makes from the inputs."""

    def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        return features["left"] - features["right"]


class Drop(nn.Module):
    """Answers at random in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(3, 2), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.dropout(self.linear(x))
        return y


class Normed(nn.Module):
    """Normalizes by the batch in training mode, and by recorded statistics in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(x)
        return y


class Centered(nn.Module):
    """The answer for a row depends on the other rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


class Positive(nn.Module):
    """Gives as many values as there are positive ones."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[x > 0]


class Doubled(nn.Module):
    """A valid module."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


MODULES: dict[str, Callable[[], Any]] = {
    "dict-output": lambda: torch.jit.trace(Named(), torch.ones(2, 3), strict=False),  # type: ignore[no-untyped-call]
    "list-output": lambda: _scripted(WithList()),
    "number-output": lambda: _scripted(WithNumber()),
    "scalar-output": lambda: _scripted(Total()),
    "no-signature": lambda: _scripted(Pair()),
    "optional-argument": lambda: _scripted(Optionally()),
    "number-argument": lambda: _scripted(Repeated()),
    "dict-argument": lambda: _scripted(Keyed()),
    "training-dropout": lambda: _scripted(Drop().train()),
    "training-norm": lambda: _scripted(Normed().train()),
    "traced-training-norm": lambda: torch.jit.trace(Normed().train(), torch.ones(2, 3), check_trace=False),  # type: ignore[no-untyped-call]
    "dependent-rows": lambda: _scripted(Centered()),
    "positive": lambda: _scripted(Positive()),
    "doubled": lambda: _scripted(Doubled()),
}
X = np.array([[1, -2, 3], [4, 5, -6]], np.float32)


def _scripted(module: nn.Module) -> Any:
    return torch.jit.script(module)


def write(folder: Path, name: str) -> Path:
    """Write one of the files and return its path."""
    path = folder / f"{name}.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(MODULES[name](), str(path))  # type: ignore[no-untyped-call]
    return path
