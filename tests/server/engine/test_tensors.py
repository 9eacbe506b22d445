"""Tensors: raw bytes, shapes, classification."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vistazo_server.engine.tensors import BYTES, DTYPES, FREE, Signature, TensorSpec, datatype_of, describe
from vistazo_server.inference.ranking import classification, largest
from vistazo_server.inference.raw_tensors import as_text, check_raw, decode_raw, decode_raw_bytes, encode_raw
from vistazo_server.inference.side_thread import at_once

NUMBERS = sorted(DTYPES.keys() - {BYTES})


def raw_bytes(array):
    """Return a tensor's raw bytes."""
    return bytes(at_once(encode_raw(array)))


@pytest.mark.parametrize("datatype", NUMBERS)
def test_raw_numbers_come_back_to_the_bit(datatype):
    @given(hnp.arrays(DTYPES[datatype], hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)))
    def check(array):
        back = decode_raw(raw_bytes(array), datatype, array.size).reshape(array.shape)

        assert back.dtype == array.dtype
        assert back.tobytes() == array.tobytes()

    check()


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_raw_bytes_come_back(elements):
    array = np.empty(len(elements), dtype=object)
    array[:] = elements

    assert at_once(decode_raw_bytes(raw_bytes(array), len(elements))) == elements


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=10))
def test_text_is_sent_as_utf8(elements):
    array = np.array([*elements, None], dtype=object)[:-1]

    data = at_once(decode_raw_bytes(raw_bytes(array), len(elements)))
    assert list(at_once(as_text(data))) == elements


@given(st.binary(max_size=40), st.integers(0, 5))
def test_garbled_bytes_are_refused_or_read_whole(data, elements):
    try:
        found = at_once(decode_raw_bytes(data, elements))
    except ValueError:
        return

    assert b"".join(struct.pack("<I", len(one)) + one for one in found) == data
    assert len(found) == elements


def test_raw_bytes_say_what_is_wrong():
    for data, elements, message in (
        (b"\x01", 1, "expected a length of 4 bytes at byte 0, got 1"),
        (b"\x05\0\0\0ab", 1, "expected 5 bytes for element 0 at byte 4, got 2"),
        (b"\0\0\0\0\0\0\0\0", 1, "expected 1 elements, got 4 bytes more"),
        (b"", 2, "expected 2 elements, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            at_once(decode_raw_bytes(data, elements))
    with pytest.raises(ValueError, match="expected 12 bytes, got 5"):
        decode_raw(b"12345", "FP32", 3)
    with pytest.raises(ValueError, match="expected at least 12 bytes for 3 elements, got 11"):
        check_raw(b"\0" * 11, BYTES, 3)
    check_raw(b"\0" * 12, BYTES, 3)
    with pytest.raises(ValueError, match="expected UTF-8 text, which element 1 is not"):
        at_once(as_text([b"fine", b"\xff"]))


def test_any_byte_but_zero_is_true():
    assert decode_raw(b"\0\1\2\xff", "BOOL", 4).tolist() == [False, True, True, True]


def test_every_onnx_type_has_a_datatype_but_those_that_numpy_lacks():
    assert datatype_of("tensor(float16)") == "FP16"
    assert datatype_of("tensor(string)") == "BYTES"
    assert datatype_of("tensor(bfloat16)") is None
    assert datatype_of("seq(tensor(float))") is None


def test_a_free_dimension_fits_any_size():
    spec = TensorSpec("x", "FP32", (3, FREE))

    assert spec.fits((3, 1))
    assert spec.fits((3, 7))
    assert not spec.fits((3, 0))
    assert not spec.fits((3, FREE))
    assert not spec.fits((4, 7))
    assert not spec.fits((3,))
    assert not spec.is_fixed
    assert Signature((spec,), (spec,), is_batched=True).shape(spec) == (FREE, 3, FREE)
    assert Signature((spec,), (spec,), is_batched=False).shape(spec) == (3, FREE)


def test_a_long_shape_is_cut_in_messages():
    assert describe((-1, 3, 224)) == "[-1, 3, 224]"
    assert describe(()) == "[]"
    assert describe([1] * 1000) == "[1, 1, 1, 1, 1, 1, 1, 1, …]"


@given(
    hnp.arrays(np.float32, st.integers(1, 20), elements=st.sampled_from([-1, 0, 0.5, 2, np.inf, -np.inf])),
    st.integers(1, 25),
)
def test_the_largest_come_first_and_equals_by_index(values, k):
    expected = sorted(range(len(values)), key=lambda index: (-values[index], index))[:k]

    assert largest(values, k) == expected


def test_nan_is_never_among_the_largest_while_there_is_something_else():
    assert largest(np.array([np.nan, 1, np.nan, 3], np.float32), 2) == [3, 1]


def test_unsigned_values_are_ordered_as_numbers():
    assert largest(np.array([0, 255, 3], np.uint8), 3) == [1, 2, 0]


def test_classification_is_written_as_triton_writes_it():
    values = np.array([0.25, 3.5, -1], np.float32)

    assert at_once(classification(values, 2, ["a", "b"])) == ["3.500000:1:b", "0.250000:0:a"]
    assert at_once(classification(values, 9, ["a", "b"]))[-1] == "-1.000000:2"
    assert at_once(classification(np.array([7, 9], np.int64), 1, ())) == ["9:1"]
    assert at_once(classification(np.array([False, True]), 1, ())) == ["1:1"]
