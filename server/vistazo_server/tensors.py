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

from vistazo_server.side_thread import Steps

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
"""A dimension whose size each request chooses, from 1 up."""

# Strings are read and written so many at a time, in 0.1 to 0.2 ms.
_STRINGS_A_STEP: Final = 512


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


def encode_raw(array: Array) -> Steps[memoryview]:
    """Return a tensor's raw bytes, as steps: those of the array itself, where it holds no strings.

    An object array holds `str` or `bytes`.
    """
    if array.dtype != object:
        return np.ascontiguousarray(array).data
    flat = array.reshape(-1)
    parts: list[bytes] = []
    for at in range(0, len(flat), _STRINGS_A_STEP):
        for element in flat[at : at + _STRINGS_A_STEP].tolist():
            encoded = element if isinstance(element, bytes) else str(element).encode()
            parts += (_LENGTH.pack(len(encoded)), encoded)
        yield
    return memoryview(b"".join(parts))


def check_raw(data: bytes, datatype: str, elements: int) -> None:
    """Raise ValueError unless `data` is as long as so many elements, or, of strings, as their lengths alone.

    The message says what was expected.
    """
    if datatype == BYTES:
        if len(data) < elements * _LENGTH.size:
            raise ValueError(
                f"expected at least {elements * _LENGTH.size} bytes for {elements} elements, got {len(data)}"
            )
        return
    expected = elements * DTYPES[datatype].itemsize
    if len(data) != expected:
        raise ValueError(f"expected {expected} bytes, got {len(data)}")


def decode_raw(data: bytes, datatype: str, elements: int) -> Array:
    """Return the `elements` numbers in a tensor's raw bytes, flat; the array may share their memory.

    Raises ValueError as `check_raw` does.
    """
    check_raw(data, datatype, elements)
    # Any byte but 0 is true; read as NumPy's own bool it would be neither.
    if datatype == "BOOL":
        return np.not_equal(np.frombuffer(data, dtype=np.uint8), 0)
    return np.frombuffer(data, dtype=DTYPES[datatype])


def decode_raw_bytes(data: bytes, elements: int) -> Steps[list[bytes]]:
    """Return the `elements` elements in the raw bytes of a BYTES tensor, as steps.

    Raises ValueError, whose message says what was expected.
    """
    found: list[bytes] = []
    at, end = 0, len(data)
    while at < end:
        if len(found) == elements:
            raise ValueError(f"expected {elements} elements, got {end - at} bytes more")
        if at + _LENGTH.size > end:
            raise ValueError(f"expected a length of 4 bytes at byte {at}, got {end - at}")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + length > end:
            raise ValueError(f"expected {length} bytes for element {len(found)} at byte {at}, got {end - at}")
        found.append(data[at : at + length])
        at += length
        if len(found) % _STRINGS_A_STEP == 0:
            yield
    if len(found) != elements:
        raise ValueError(f"expected {elements} elements, got {len(found)}")
    return found


def as_text(elements: Sequence[bytes]) -> Steps[Array]:
    """Return BYTES as the object array of `str` that ONNX Runtime takes, as steps.

    Raises ValueError for an element that is no UTF-8.
    """
    array = np.empty(len(elements), dtype=object)
    for at in range(0, len(elements), _STRINGS_A_STEP):
        for index, element in enumerate(elements[at : at + _STRINGS_A_STEP], start=at):
            try:
                array[index] = element.decode()
            except UnicodeDecodeError:
                raise ValueError(f"expected UTF-8 text, which element {index} is not") from None
        yield
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


def classification(values: Array, k: int, labels: Sequence[str]) -> Steps[list[str]]:
    """Return Triton's classification of flat `values`, as steps.

    Each class is "value:index", or, where there is one, "value:index:label".
    """
    write = ("{:.6f}" if values.dtype.kind == "f" else "{:d}").format
    best: list[str] = []
    for index in largest(values, k):
        label = f":{labels[index]}" if index < len(labels) else ""
        best.append(f"{write(values[index].item())}:{index}{label}")
        if len(best) % _STRINGS_A_STEP == 0:
            yield
    return best
