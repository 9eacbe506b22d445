"""The elements of a ModelInfer request's inputs: counted before anything costs time, decoded afterwards."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import numpy as np

from vistazo_proto import open_inference_pb2 as pb
from vistazo_server.engine.tensors import BYTES, DTYPES, Array, describe, quoted
from vistazo_server.errors import InvalidRequestError
from vistazo_server.inference.predictor import COPY_SECONDS, ModelInputs
from vistazo_server.inference.raw_tensors import as_text, check_raw, decode_raw, decode_raw_bytes
from vistazo_server.inference.side_thread import Steps
from vistazo_server.rpc.wire import field_head

_InputTensor = pb.ModelInferRequest.InferInputTensor

# The one field of InferTensorContents that holds each datatype; FP16 has none.
_CONTENTS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
_WIDE: Final = {"int_contents": np.dtype(np.int32), "uint_contents": np.dtype(np.uint32)}
"""What the fields hold that carry datatypes narrower than their own."""

# On the wire each element of these has the size of its datatype, so that protobuf's own bytes are an array.
_PACKED: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.uint8),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
# Protobuf keeps the interpreter's lock meanwhile: 1 to 5 ms for so many, but 64 ms for 38 MB of FP32.
_MOST_PACKED: Final = 1 << 20
# Others are taken out of protobuf's containers one by one, so many at a time, in 0.1 to 0.2 ms.
_ELEMENTS_A_STEP: Final = 1 << 12

# What decoding takes for each element, on a core of 2.4 GHz that does nothing else.
_PACKED_SECONDS: Final = 2e-9
_TYPED_SECONDS: Final = 30e-9
STRING_SECONDS: Final = 300e-9


class Contents(NamedTuple):
    """One input's elements, of which there are as many as its shape says, before they are decoded."""

    tensor: _InputTensor
    raw: bytes | None
    """None: they are typed."""
    elements: int
    seconds: float
    """That decoding is predicted to take."""


def check_contents(tensor: _InputTensor, raw: bytes | None, count: int) -> Array | Contents:
    """Return an input's array, where the data is one as it is; else what is left to be decoded.

    `count` is how many elements its shape says. Raises InvalidRequestError when there are more or less.
    """
    datatype = tensor.datatype
    if raw is None:
        _check_typed(tensor, count)
        if datatype == BYTES:
            return Contents(tensor, None, count, count * STRING_SECONDS)
        is_packed = datatype in _PACKED and count <= _MOST_PACKED
        return Contents(tensor, None, count, count * (_PACKED_SECONDS if is_packed else _TYPED_SECONDS))
    with _naming(tensor):
        if datatype not in (BYTES, "BOOL"):
            return decode_raw(raw, datatype, count).reshape(tuple(tensor.shape))
        check_raw(raw, datatype, count)
    if datatype == BYTES:
        return Contents(tensor, raw, count, count * STRING_SECONDS + len(raw) * COPY_SECONDS)
    return Contents(tensor, raw, count, count * _PACKED_SECONDS)


def decode_inputs(contents: Sequence[Array | Contents], *, as_images: bool) -> Steps[ModelInputs]:
    """Return the inputs of a request, as steps. Raises InvalidRequestError."""
    arrays: list[Array] = []
    for one in contents:
        if isinstance(one, np.ndarray):
            arrays.append(one)
        elif as_images:
            return ModelInputs((), (yield from _strings(one)))
        else:
            arrays.append((yield from _array(one)))
    return ModelInputs(arrays, ())


def _array(contents: Contents) -> Steps[Array]:
    """Return an input's elements in its shape, as steps."""
    tensor, raw, elements, _ = contents
    if tensor.datatype == BYTES:
        strings = yield from _strings(contents)
        with _naming(tensor):
            flat = yield from as_text(strings)
    elif raw is None:
        flat = yield from _numbers(tensor, elements)
    else:
        flat = decode_raw(raw, tensor.datatype, elements)
    return flat.reshape(tuple(tensor.shape))


def _strings(contents: Contents) -> Steps[list[bytes]]:
    tensor, raw, elements, _ = contents
    if raw is None:
        return list(tensor.contents.bytes_contents)
    with _naming(tensor):
        return (yield from decode_raw_bytes(raw, elements))


@contextmanager
def _naming(tensor: _InputTensor) -> Iterator[None]:
    """Let what is wrong with a tensor's data name the tensor."""
    try:
        yield
    except ValueError as error:
        raise InvalidRequestError(
            f"input {quoted(tensor.name)} of shape {describe(tensor.shape)}: {error}"
        ) from None


def _check_typed(tensor: _InputTensor, count: int) -> None:
    """Raise InvalidRequestError unless an input has `count` elements in the field for its datatype."""
    where = f"input {quoted(tensor.name)}"
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise InvalidRequestError(
            f"{where}: {tensor.datatype} has no typed contents, send it in raw_input_contents"
        )
    for other, _ in tensor.contents.ListFields():
        if other.name != field:
            raise InvalidRequestError(f"{where}: expected {field} for {tensor.datatype}, got {other.name}")
    given = len(getattr(tensor.contents, field))
    if given != count:
        raise InvalidRequestError(
            f"{where} of shape {describe(tensor.shape)}: expected {count} elements in {field}, got {given}"
        )


def _numbers(tensor: _InputTensor, count: int) -> Steps[Array]:
    """Return the `count` numbers of an input's typed contents, as steps."""
    field, dtype = _CONTENTS[tensor.datatype], DTYPES[tensor.datatype]
    packed = _PACKED.get(tensor.datatype)
    if packed is not None and count <= _MOST_PACKED:
        head = field_head(pb.InferTensorContents, field, count * packed.itemsize)
        # Copied: behind the head it is not aligned as an array has to be.
        data = tensor.contents.SerializeToString()
        return np.frombuffer(data, packed, count, len(head)).astype(dtype)
    values = np.empty(count, dtype=_WIDE.get(field, dtype))
    following = iter(getattr(tensor.contents, field))
    for at in range(0, count, _ELEMENTS_A_STEP):
        step = min(_ELEMENTS_A_STEP, count - at)
        values[at : at + step] = np.fromiter(following, dtype=values.dtype, count=step)
        yield
    if values.dtype == dtype:
        return values
    bounds = np.iinfo(dtype)
    for value in (values.min(initial=0), values.max(initial=0)):
        if not bounds.min <= value <= bounds.max:
            raise InvalidRequestError(
                f"input {quoted(tensor.name)}: expected {tensor.datatype} values of {bounds.min} to "
                f"{bounds.max}, got {value}"
            )
    return values.astype(dtype)
