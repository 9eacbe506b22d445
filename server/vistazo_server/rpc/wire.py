"""What both services write by the same rules: statuses, pushbacks, and the heads of protobuf's fields."""

import math
from typing import Final

import grpc
from google.protobuf.message import Message


def status_number(code: grpc.StatusCode) -> int:
    """Return the number of a status code on the wire, such as 3 for INVALID_ARGUMENT."""
    number: int = code.value[0]
    return number


def pushback_ms(retry_after: float) -> int:
    """Return seconds as whole milliseconds, at least 1, for `grpc-retry-pushback-ms` (gRPC proposal A6)."""
    return max(1, math.ceil(retry_after * 1000))


def field_head(message: type[Message], field: str, size: int) -> bytes:
    """Return what stands on the wire before a field's value of `size` bytes: its tag, and its size.

    For a message, bytes, or a list of numbers. https://protobuf.dev/programming-guides/encoding
    """
    tag = message.DESCRIPTOR.fields_by_name[field].number << 3 | _LENGTH_DELIMITED
    return _varint(tag) + _varint(size)


_LENGTH_DELIMITED: Final = 2


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)
