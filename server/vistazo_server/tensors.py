"""Tensors as the Open Inference Protocol knows them: datatypes, specs, and their raw bytes.

Raw bytes are the elements in row-major order, little-endian. A BOOL is one byte. An element of BYTES is
preceded by its length in four bytes; in NumPy it is an object array of `str`, since ONNX Runtime's strings
are text.
"""

import itertools
import struct
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

_LENGTH: Final = struct.Struct("<I")

FREE: Final = -1
"""A dimension whose size each request chooses."""


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
            want in (FREE, size) for want, size in zip(self.dims, shape, strict=True)
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


def encode_raw(array: Array) -> bytes:
    """Return a tensor's raw bytes; an object array holds `str` or `bytes`."""
    if array.dtype != object:
        return array.tobytes()
    parts: list[bytes] = []
    for element in array.ravel():
        encoded = element if isinstance(element, bytes) else str(element).encode()
        parts += (_LENGTH.pack(len(encoded)), encoded)
    return b"".join(parts)


def decode_raw(data: bytes, datatype: str, elements: int) -> Array:
    """Return the `elements` numbers in a tensor's raw bytes, flat; the array may share their memory.

    Raises ValueError, whose message says what was expected.
    """
    dtype = DTYPES[datatype]
    expected = elements * dtype.itemsize
    if len(data) != expected:
        raise ValueError(f"expected {expected} bytes, got {len(data)}")
    # Any byte but 0 is true; read as NumPy's own bool it would be neither.
    if datatype == "BOOL":
        return np.not_equal(np.frombuffer(data, dtype=np.uint8), 0)
    return np.frombuffer(data, dtype=dtype)


def decode_raw_bytes(data: bytes, elements: int) -> list[bytes]:
    """Return the `elements` elements in the raw bytes of a BYTES tensor.

    Raises ValueError, whose message says what was expected.
    """
    found: list[bytes] = []
    at = 0
    while at < len(data):
        if len(found) == elements:
            raise ValueError(f"expected {elements} elements, got {len(data) - at} bytes more")
        if at + _LENGTH.size > len(data):
            raise ValueError(f"expected a length of 4 bytes at byte {at}, got {len(data) - at}")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + length > len(data):
            raise ValueError(
                f"expected {length} bytes for element {len(found)} at byte {at}, got {len(data) - at}"
            )
        found.append(data[at : at + length])
        at += length
    if len(found) != elements:
        raise ValueError(f"expected {elements} elements, got {len(found)}")
    return found


def as_text(elements: Sequence[bytes]) -> Array:
    """Return BYTES as the object array of `str` that ONNX Runtime takes.

    Raises ValueError for an element that is no UTF-8.
    """
    array = np.empty(len(elements), dtype=object)
    for index, element in enumerate(elements):
        try:
            array[index] = element.decode()
        except UnicodeDecodeError:
            raise ValueError(f"expected UTF-8 text, which element {index} is not") from None
    return array


def largest(values: Array, k: int) -> list[int]:
    """Return the indexes of the k largest of flat `values`, largest first, equal ones by lower index.

    NaN comes last. `k` may exceed the number of values.
    """
    key = np.where(np.isnan(values), -np.inf, values) if values.dtype.kind == "f" else values
    # An ascending stable sort of the reversed array, read backwards, keeps equal ones in their order.
    order = len(key) - 1 - np.argsort(key[::-1], kind="stable")[::-1]
    indexes: list[int] = order[:k].tolist()
    return indexes


def classification(values: Array, k: int, labels: Sequence[str]) -> list[str]:
    """Return Triton's classification of flat `values`: "value:index" or, where there is one, ":label" too."""
    write = "{:.6f}" if values.dtype.kind == "f" else "{:d}"
    return [
        f"{write.format(value)}:{index}" + (f":{labels[index]}" if index < len(labels) else "")
        for index in largest(values, k)
        for value in (values[index].item(),)
    ]
