"""Tensors as the Open Inference Protocol knows them: their datatypes, and what a graph takes and gives.

A tensor of BYTES is an object array of `str` in NumPy, since ONNX Runtime's strings are text.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BYTES: Final = "BYTES"

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    BYTES: np.dtype(object),
}
"""Every datatype that can be served. BF16 is not: ONNX Runtime has no NumPy arrays of it."""

_OF_ONNX: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": BYTES,
}

_MOST_DIMS_SHOWN: Final = 8

FREE: Final = -1
"""A dimension whose size each request chooses, from 1 up."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a graph."""

    name: str
    datatype: str
    """One of DTYPES."""
    dims: tuple[int, ...]
    """Of one sample, so without the batch dimension where there is one; -1: free."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """What its arrays hold."""
        return DTYPES[self.datatype]

    @property
    def is_fixed(self) -> bool:
        """Whether all samples have one shape."""
        return FREE not in self.dims

    def fits(self, shape: Sequence[int]) -> bool:
        """Return whether a sample may have this shape."""
        return len(shape) == len(self.dims) and all(
            size >= 1 if want == FREE else size == want for want, size in zip(self.dims, shape, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Signature:
    """What a graph takes and gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    is_batched: bool
    """True: the first dimension of every tensor counts samples. False: there is no such dimension, and a
    request is one sample, with tensors of exactly `dims`."""
    fixed_batch: int = 0
    """Samples that each run of the graph takes; 0: any number."""

    def shape(self, spec: TensorSpec) -> tuple[int, ...]:
        """Return a tensor's shape as a request gives it: with the batch dimension, -1, where there is one."""
        return (FREE, *spec.dims) if self.is_batched else spec.dims


def datatype_of(onnx_type: str) -> str | None:
    """Return the datatype of an ONNX Runtime type such as "tensor(float)"; None when it cannot be served."""
    return _OF_ONNX.get(onnx_type)


def describe(shape: Iterable[int]) -> str:
    """Return a shape as messages write it, such as [-1, 3, 224, 224]; a long one is cut."""
    shown = [str(size) for size in itertools.islice(shape, _MOST_DIMS_SHOWN + 1)]
    return f"[{', '.join(shown[:_MOST_DIMS_SHOWN])}{', …' if len(shown) > _MOST_DIMS_SHOWN else ''}]"


def quoted(name: str) -> str:
    """Return a caller's string fit for a one-line message."""
    return repr(name[:100])
