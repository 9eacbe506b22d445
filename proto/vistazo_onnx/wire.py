"""Protobuf's wire format: where the fields of a message are, without copying them."""

import mmap
from collections.abc import Iterator
from typing import Final

VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
FIXED32: Final = 5

Data = mmap.mmap | bytes
Span = tuple[int, int]
"""Where a message begins and ends in the data."""


def messages(data: Data, span: Span, wanted: int) -> Iterator[Span]:
    """Yield where the messages in field `wanted` of the message at `span` are."""
    for field, wire_type, start, end in fields(data, span):
        if field == wanted and wire_type == BYTES:
            yield start, end


def numbers(data: Data, span: Span, wanted: int) -> Iterator[int]:
    """Yield the whole numbers in field `wanted`, packed or not, as int64."""
    for field, wire_type, start, end in fields(data, span):
        if field != wanted:
            continue
        if wire_type == VARINT:
            yield _signed(varint(data, start)[0])
        elif wire_type == BYTES:
            at = start
            while at < end:
                number, at = varint(data, at)
                yield _signed(number)


def fields(data: Data, span: Span) -> Iterator[tuple[int, int, int, int]]:
    """Yield each field of the message at `span`: number, wire type, and where its value is.

    Raises ValueError or IndexError for what is no protobuf.
    """
    at, end = span
    while at < end:
        key, at = varint(data, at)
        wire_type = key & 7
        start = at
        if wire_type == VARINT:
            _, at = varint(data, at)
        elif wire_type == BYTES:
            length, start = varint(data, at)
            at = start + length
        elif wire_type in (FIXED64, FIXED32):
            at += 8 if wire_type == FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire_type} at byte {start}")
        if at > end:
            raise ValueError(f"a field ends at byte {at}, its message at {end}")
        yield key >> 3, wire_type, start, at


def varint(data: Data, at: int) -> tuple[int, int]:
    """Return the number at `at` and where it ends."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number
