"""The type of tensors in memory."""

from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
