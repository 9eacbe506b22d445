"""The raw bytes of tensors, as the Open Inference Protocol sends them.

They are the elements in row-major order, little-endian. A BOOL is one byte. An element of BYTES is preceded
by its length in four bytes.
"""

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np

from vistazo_server.engine.tensors import BYTES, DTYPES, Array
from vistazo_server.inference.side_thread import Steps

_LENGTH: Final = struct.Struct("<I")

# Strings are read and written so many at a time, in 0.1 to 0.2 ms.
_STRINGS_A_STEP: Final = 512


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
