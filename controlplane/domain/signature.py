"""Inputs and outputs of a model, in the terms of the KServe v2 protocol that Triton uses."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    # The CLI reads signatures in every run; importing numpy would slow it down.
    import numpy as np

    from controlplane.domain.arrays import Array

NAME_MAX = 1024
"""Maximum length of a tensor name, in characters. Triton 2.51 serves names of 60,000; exporters write a few hundred."""

DYNAMIC = -1
"""A dimension whose size each request chooses."""


class DataType(StrEnum):
    """Tensor element types of the v2 inference protocol."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    BF16 = "BF16"
    FP32 = "FP32"
    FP64 = "FP64"
    BYTES = "BYTES"

    @property
    def numpy(self) -> "np.dtype[Any]":
        """The numpy dtype of its values: objects for BYTES, float32 for BF16 (which numpy does not have)."""
        import numpy as np

        return np.dtype(_NUMPY[self])

    @property
    def size_bytes(self) -> int | None:
        """Bytes per element on the wire; None for BYTES, whose elements carry their length."""
        if self is DataType.BYTES:
            return None
        return 2 if self is DataType.BF16 else self.numpy.itemsize

    @property
    def is_float(self) -> bool:
        """Whether outputs of this type are compared with a tolerance."""
        return self in {DataType.FP16, DataType.BF16, DataType.FP32, DataType.FP64}

    @classmethod
    def of(cls, array: "Array") -> Self:
        """Return the protocol's type for a numpy array.

        Raises:
            ValueError: The protocol has no type for it (complex numbers, dates).
        """
        import numpy as np

        if array.dtype.kind in {"O", "S", "U"}:
            return cls("BYTES")
        for name, dtype in _NUMPY.items():
            if name != "BF16" and np.dtype(dtype) == array.dtype:
                return cls(name)
        raise ValueError(f"arrays of dtype {array.dtype} cannot be sent to Triton")


_NUMPY: dict[str, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "BF16": "float32",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
}

Dimension = Annotated[int, Field(ge=DYNAMIC)]


class TensorSpec(BaseModel):
    """One input or output: name, element type and full shape."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(min_length=1, max_length=NAME_MAX, description="The tensor's name in the model file.")
    dtype: DataType = Field(description="Element type, as named by the v2 inference protocol.")
    shape: tuple[Dimension, ...] = Field(
        description="Full shape, including the batch dimension; -1 is a size that each request chooses."
    )
    optional: bool = Field(default=False, description="Whether a request may omit this input.")

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Return whether an array of this shape fits."""
        return len(shape) == len(self.shape) and all(
            want in (DYNAMIC, have) for want, have in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{','.join('?' if size == DYNAMIC else str(size) for size in self.shape)}]"


class Signature(BaseModel):
    """Inputs and outputs of a model, and whether Triton may batch requests for it.

    ``batched`` states that the first dimension of every input and output is the same batch dimension. Equal dynamic
    first dimensions do not prove that (a sequence length looks the same), so the reader of the model file states it
    explicitly.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    inputs: tuple[TensorSpec, ...] = Field(min_length=1, description="The inputs, in the model's order.")
    outputs: tuple[TensorSpec, ...] = Field(min_length=1, description="The outputs, in the model's order.")
    batched: bool = Field(
        default=False, description="Whether the first dimension of every tensor is the batch dimension."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            names = [tensor.name for tensor in tensors]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{kind} name {twice[0]!r} appears more than once")
        if self.batched:
            for tensor in (*self.inputs, *self.outputs):
                if not tensor.shape or tensor.shape[0] != DYNAMIC:
                    raise ValueError(
                        f"a batched signature needs -1 as the first dimension of every tensor; {tensor} does not "
                        "have it"
                    )
        return self
