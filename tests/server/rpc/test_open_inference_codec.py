"""The codec of Open Inference: what a request may say, and what it is told when it may not."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vistazo_proto import open_inference_pb2 as pb
from vistazo_server.engine.tensors import BYTES, DTYPES, FREE, Signature, TensorSpec
from vistazo_server.errors import InvalidRequestError
from vistazo_server.inference.predictor import ModelInputs, NamedTensor, OutputChoice
from vistazo_server.inference.raw_tensors import encode_raw
from vistazo_server.inference.side_thread import INLINE_SECONDS, at_once
from vistazo_server.rpc.open_inference import contents as open_inference_contents
from vistazo_server.rpc.open_inference.codec import (
    decode_infer_request,
    encode_infer_response,
    encode_seconds,
)
from vistazo_server.rpc.wire import field_head

IMAGES = TensorSpec("images", "UINT8", (4, 4, 3))
LOGITS = TensorSpec("logits", "FP32", (3,))
IMAGE_MODEL = Signature((IMAGES,), (LOGITS,), is_batched=True)

FIELD = {
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
    "BYTES": "bytes_contents",
}


def request_of(**arrays):
    """Return a request of raw inputs."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    return pb.ModelInferRequest(
        inputs=[
            pb.ModelInferRequest.InferInputTensor(name=name, datatype=names[array.dtype], shape=array.shape)
            for name, array in arrays.items()
        ],
        raw_input_contents=[raw_bytes(array) for array in arrays.values()],
    )


def raw_bytes(array):
    """Return a tensor's raw bytes."""
    return bytes(at_once(encode_raw(array)))


@dataclass
class Decoded:
    """What a request asks, its inputs decoded."""

    inputs: Any
    images: Any
    outputs: Any
    timeout: float | None


def checked(request, signature=IMAGE_MODEL, *, takes_images=False, max_samples=8):
    """Return what a request asks, before anything that takes time."""
    return decode_infer_request(request, signature, takes_images=takes_images, max_samples=max_samples)


def decode(request, signature=IMAGE_MODEL, **options):
    command = checked(request, signature, **options)
    given = command.inputs
    inputs = given if isinstance(given, ModelInputs) else at_once(given.decode())
    return Decoded(*inputs, command.outputs, command.timeout)


def refusal(request, signature=IMAGE_MODEL, **options):
    """Return the message with which a request is refused."""
    with pytest.raises(InvalidRequestError) as caught:
        decode(request, signature, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def image_request(samples=1):
    return request_of(images=np.zeros((samples, 4, 4, 3), np.uint8))


def one_of(datatype):
    return Signature(
        (TensorSpec("x", datatype, (FREE, FREE)),), (TensorSpec("y", datatype, (FREE,)),), is_batched=False
    )


def arrays_of(datatype, *, min_side=1):
    shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=min_side, max_side=4)
    if datatype == BYTES:
        text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
        return hnp.arrays(object, shapes, elements=text)
    return hnp.arrays(DTYPES[datatype], shapes)


@pytest.mark.parametrize("datatype", sorted(DTYPES))
def test_raw_and_typed_contents_mean_the_same_to_the_bit(datatype):
    @given(arrays_of(datatype))
    def check(array):
        raw = request_of(x=array)
        (decoded,) = decode(raw, one_of(datatype)).inputs
        assert decoded.shape == array.shape
        assert raw_bytes(decoded) == raw_bytes(array)
        if datatype == "FP16":
            return
        typed = pb.ModelInferRequest(inputs=raw.inputs)
        values = [value.encode() for value in array.ravel()] if datatype == BYTES else array.ravel().tolist()
        getattr(typed.inputs[0].contents, FIELD[datatype]).extend(values)
        (decoded,) = decode(typed, one_of(datatype)).inputs
        assert decoded.dtype == array.dtype
        np.testing.assert_array_equal(decoded, array)

    check()


@pytest.mark.parametrize("datatype", sorted(DTYPES))
def test_a_response_is_the_message_that_it_stands_for(datatype):
    @given(st.lists(arrays_of(datatype, min_side=0), max_size=3))
    def check(arrays):
        request = pb.ModelInferRequest(id="me")
        tensors = [NamedTensor(f"y{at}", datatype, array) for at, array in enumerate(arrays)]
        encoded = at_once(encode_infer_response(request, model="m", version="2", tensors=tensors))

        assert pb.ModelInferResponse.FromString(encoded) == pb.ModelInferResponse(
            model_name="m",
            model_version="2",
            id="me",
            outputs=[
                pb.ModelInferResponse.InferOutputTensor(name=f"y{at}", datatype=datatype, shape=array.shape)
                for at, array in enumerate(arrays)
            ],
            raw_output_contents=[raw_bytes(array) for array in arrays],
        )

    check()


@pytest.mark.parametrize("datatype", sorted(DTYPES))
def test_a_response_gives_back_what_a_request_brought(datatype):
    @given(arrays_of(datatype))
    def check(array):
        request = pb.ModelInferRequest(id="me")
        tensors = [NamedTensor("y", datatype, array)]
        encoded = at_once(encode_infer_response(request, model="m", version="2", tensors=tensors))
        response = pb.ModelInferResponse.FromString(encoded)
        assert (response.model_name, response.model_version, response.id) == ("m", "2", "me")
        assert list(response.outputs[0].shape) == list(array.shape)
        again = pb.ModelInferRequest(
            inputs=[
                pb.ModelInferRequest.InferInputTensor(
                    name="x", datatype=response.outputs[0].datatype, shape=response.outputs[0].shape
                )
            ],
            raw_input_contents=response.raw_output_contents,
        )
        (back,) = decode(again, one_of(datatype)).inputs
        assert raw_bytes(back) == raw_bytes(array)

    check()


@pytest.mark.parametrize("asked", [None, False, True])
def test_in_a_stream_the_response_is_marked_as_the_last_one_when_that_is_asked_for(asked):
    request = pb.ModelInferRequest(id="me")
    if asked is not None:
        request.parameters["triton_enable_empty_final_response"].bool_param = asked
    tensors = [NamedTensor("y", "FP32", np.arange(300, dtype=np.float32))]

    def encode(*, in_stream):
        steps = encode_infer_response(request, model="m", version="2", tensors=tensors, in_stream=in_stream)
        return at_once(steps)

    expected = pb.ModelInferResponse.FromString(encode(in_stream=False))
    assert not expected.parameters
    if asked:
        expected.parameters["triton_final_response"].bool_param = True
    message = pb.ModelStreamInferResponse.FromString(encode(in_stream=True))

    assert message == pb.ModelStreamInferResponse(infer_response=expected)


# Around what is taken out of protobuf as it lies there, and at once: one less, as many, and one more.
EDGES = [
    open_inference_contents._ELEMENTS_A_STEP - 1,
    open_inference_contents._ELEMENTS_A_STEP,
    open_inference_contents._ELEMENTS_A_STEP + 1,
    open_inference_contents._MOST_PACKED,
    open_inference_contents._MOST_PACKED + 1,
]


def many(datatype, count):
    """Return so many numbers of all the bits that a datatype has, but for the NaNs."""
    dtype = DTYPES[datatype]
    if datatype == "BOOL":
        return np.arange(count) % 3 == 0
    data = np.random.default_rng(count).bytes(count * dtype.itemsize)
    values = np.frombuffer(data, dtype)
    return np.where(np.isnan(values), dtype.type(-0.0), values) if dtype.kind == "f" else values


@pytest.mark.parametrize("count", EDGES)
@pytest.mark.parametrize("datatype", sorted(DTYPES.keys() - {"FP16", BYTES}))
def test_large_typed_contents_come_to_the_bit_too(datatype, count):
    values = many(datatype, count)
    typed = request_of(x=values[np.newaxis])
    del typed.raw_input_contents[:]
    getattr(typed.inputs[0].contents, FIELD[datatype]).extend(values.tolist())
    (decoded,) = decode(typed, one_of(datatype)).inputs

    assert decoded.dtype == values.dtype
    assert decoded.flags.aligned
    assert decoded.tobytes() == values.tobytes()


@pytest.mark.parametrize("datatype", ["BOOL", "FP32", "FP64", "INT32"])
def test_fields_that_nobody_knows_do_not_shift_typed_contents(datatype):
    values = many(datatype, 5)
    typed = request_of(x=values[np.newaxis])
    del typed.raw_input_contents[:]
    contents = pb.InferTensorContents()
    getattr(contents, FIELD[datatype]).extend(values.tolist())
    unknown = b"\xfa\x01\x03abc"  # field 31
    typed.inputs[0].contents.MergeFromString(unknown + contents.SerializeToString() + unknown)
    (decoded,) = decode(typed, one_of(datatype)).inputs

    assert decoded.tobytes() == values.tobytes()


def test_typed_contents_may_come_unpacked():
    typed = request_of(x=np.array([[1.5, -2.0]], np.float32))
    del typed.raw_input_contents[:]
    # As by a sender that knows nothing of packing: each element with a tag of its own.
    typed.inputs[0].contents.MergeFromString(b"\x35\0\0\xc0\x3f\x35\0\0\0\xc0")
    (decoded,) = decode(typed, one_of("FP32")).inputs

    assert decoded.tolist() == [[1.5, -2.0]]


def test_fp16_has_no_typed_contents():
    request = request_of(x=np.zeros((1, 2), np.float16))
    del request.raw_input_contents[:]

    assert refusal(request, one_of("FP16")) == (
        "input 'x': FP16 has no typed contents, send it in raw_input_contents"
    )


def test_a_request_without_outputs_gets_all_of_them():
    signature = Signature((IMAGES,), (LOGITS, TensorSpec("features", "FP32", (8,))), is_batched=True)

    assert decode(image_request(), signature).outputs == [OutputChoice(0), OutputChoice(1)]


def test_requested_outputs_come_in_the_order_requested():
    signature = Signature((IMAGES,), (LOGITS, TensorSpec("features", "FP32", (8,))), is_batched=True)
    request = image_request()
    request.outputs.add(name="features")
    request.outputs.add(name="logits").parameters["classification"].int64_param = 2

    assert decode(request, signature).outputs == [OutputChoice(1), OutputChoice(0, classes=2)]


def test_inputs_may_come_in_any_order():
    signature = Signature(
        (TensorSpec("a", "FP32", (2,)), TensorSpec("b", "INT64", ())), (LOGITS,), is_batched=True
    )
    a, b = np.ones((3, 2), np.float32), np.arange(3)

    for request in (request_of(a=a, b=b), request_of(b=b, a=a)):
        first, second = decode(request, signature).inputs
        np.testing.assert_array_equal(first, a)
        np.testing.assert_array_equal(second, b)


def test_wrong_inputs_are_named():
    twice = image_request()
    twice.inputs.add().CopyFrom(twice.inputs[0])
    two = Signature((IMAGES, TensorSpec("mask", "BOOL", ())), (LOGITS,), is_batched=True)
    extra = request_of(images=np.zeros((1, 4, 4, 3), np.uint8), more=np.zeros(1, np.uint8))

    assert refusal(twice) == "inputs: 'images' is given twice"
    assert refusal(extra) == "inputs: 'more' is not an input of the model; it has 'images'"
    assert refusal(image_request(), two) == "inputs: expected 'images', 'mask', 'mask' is missing"
    assert refusal(pb.ModelInferRequest()) == "inputs: expected 'images', 'images' is missing"


def test_wrong_outputs_are_named():
    request = image_request()
    request.outputs.add(name="scores")
    twice = image_request()
    twice.outputs.add(name="logits")
    twice.outputs.add(name="logits")

    assert refusal(request) == "outputs: 'scores' is not an output of the model; it has 'logits'"
    assert refusal(twice) == "outputs: 'logits' is requested twice"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 4, 4, 3), np.float32), "input 'images': expected datatype UINT8, got 'FP32'"),
        (np.zeros((4, 4, 3), np.uint8), "input 'images': expected shape [-1, 4, 4, 3], got [4, 4, 3]"),
        (np.zeros((1, 4, 5, 3), np.uint8), "input 'images': expected shape [-1, 4, 4, 3], got [1, 4, 5, 3]"),
        (np.zeros((), np.uint8), "input 'images': expected shape [-1, 4, 4, 3], got []"),
        (
            np.zeros((1,) * 20, np.uint8),
            "input 'images': expected shape [-1, 4, 4, 3], got [1, 1, 1, 1, 1, 1, 1, 1, …]",
        ),
        (np.zeros((0, 4, 4, 3), np.uint8), "input 'images': expected a batch of 1 to 8, got 0"),
        (np.zeros((9, 4, 4, 3), np.uint8), "input 'images': expected a batch of 1 to 8, got 9"),
    ],
)
def test_a_wrong_datatype_or_shape_is_told_from_the_right_one(array, message):
    assert refusal(request_of(images=array)) == message


def test_negative_and_huge_sizes_are_refused():
    for size in (-1, -(2**63), 2**62):
        request = image_request()
        request.inputs[0].shape[0] = size
        assert refusal(request).startswith("input 'images': expected")


FREE_SIZES = Signature((TensorSpec("x", "FP32", (3, FREE, FREE)),), (LOGITS,), is_batched=True)
BAD_SIZES = [
    (3, 0, 5),
    (3, 0, 0),
    (3, 5, 0),
    (3, -1, 5),
    (3, -1, -1),
    (3, -(2**63), 5),
    (3, 0, 2**62),
    (3, 2**62, 2**62),
    (3, 2**63 - 1, 2**63 - 1),
    (3, 2**32, 2**32),  # 0, were it counted in 64 bits
]


def shaped(datatype, shape, *, typed, elements=0):
    """Return a request for `x` of any shape at all, with so many elements."""
    data = np.zeros(elements, DTYPES[datatype]) if datatype != BYTES else np.array([""] * elements, object)
    request = pb.ModelInferRequest(
        inputs=[pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=shape)]
    )
    if typed:
        values = [b""] * elements if datatype == BYTES else data.tolist()
        getattr(request.inputs[0].contents, FIELD[datatype]).extend(values)
    else:
        request.raw_input_contents.append(raw_bytes(data))
    return request


@pytest.mark.parametrize("sizes", BAD_SIZES)
@pytest.mark.parametrize("elements", [0, 15])
@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("datatype", ["FP32", "UINT8", "BOOL", BYTES])
@pytest.mark.parametrize("is_batched", [True, False])
def test_no_size_of_a_sample_is_zero_negative_or_beyond_all_data(
    sizes, elements, typed, datatype, is_batched
):
    signature = Signature((TensorSpec("x", datatype, (3, FREE, FREE)),), (LOGITS,), is_batched=is_batched)
    shape = (1, *sizes) if is_batched else sizes
    message = refusal(shaped(datatype, shape, typed=typed, elements=elements), signature)

    wanted = "[-1, 3, -1, -1]" if is_batched else "[3, -1, -1]"
    got = f"[{', '.join(map(str, shape))}]"
    if min(sizes) < 1:
        assert message == f"input 'x': expected shape {wanted}, with sizes from 1 up, got {got}"
    else:
        assert message.startswith(f"input 'x' of shape {got}: expected ")


@pytest.mark.parametrize("shape", [(0,), (-1,), (-(2**63),)])
def test_a_graph_without_a_batch_takes_no_empty_vector(shape):
    signature = Signature((TensorSpec("x", "FP32", (FREE,)),), (LOGITS,), is_batched=False)

    assert refusal(shaped("FP32", shape, typed=False), signature) == (
        f"input 'x': expected shape [-1], with sizes from 1 up, got [{shape[0]}]"
    )


@pytest.mark.parametrize("samples", [0, -1, 2**62])
@pytest.mark.parametrize("typed", [False, True])
def test_a_batch_of_none_or_too_many_is_refused_before_its_data_is_looked_at(samples, typed):
    message = refusal(shaped("FP32", (samples, 3, 2, 2), typed=typed), FREE_SIZES)

    assert message == f"input 'x': expected a batch of 1 to 8, got {samples}"


def test_the_input_with_the_bad_size_is_named_whichever_it_is():
    signature = Signature(
        (TensorSpec("a", "FP32", (FREE,)), TensorSpec("b", "INT64", (2, FREE))), (LOGITS,), is_batched=True
    )
    a, b = np.ones((3, 4), np.float32), np.ones((3, 2, 4), np.int64)

    assert refusal(request_of(a=a, b=b[:, :, :0]), signature) == (
        "input 'b': expected shape [-1, 2, -1], with sizes from 1 up, got [3, 2, 0]"
    )
    assert refusal(request_of(b=b, a=a[:, :0]), signature) == (
        "input 'a': expected shape [-1, -1], with sizes from 1 up, got [3, 0]"
    )


@given(
    sizes=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 3), max_size=6),
    datatype=st.sampled_from(sorted(DTYPES)),
    elements=st.integers(0, 12),
    typed=st.booleans(),
    is_batched=st.booleans(),
    dims=st.lists(st.sampled_from([FREE, 1, 2, 3]), max_size=3),
)
def test_any_shape_is_taken_as_it_is_or_refused_in_one_line(
    sizes, datatype, elements, typed, is_batched, dims
):
    signature = Signature((TensorSpec("x", datatype, tuple(dims)),), (LOGITS,), is_batched=is_batched)
    if typed and datatype == "FP16":
        return
    request = shaped(datatype, sizes, typed=typed, elements=elements)
    fits = (
        len(sizes) == len(dims) + is_batched
        and all(
            size >= 1 if dim == FREE else size == dim
            for dim, size in zip(dims, sizes[is_batched:], strict=True)
        )
        and (not is_batched or 1 <= sizes[0] <= 8)
        and math.prod(sizes) == elements
    )
    if not fits:
        assert "input 'x'" in refusal(request, signature)
        return
    (decoded,) = decode(request, signature).inputs

    assert decoded.shape == tuple(sizes)
    assert decoded.size == elements >= 1


# What takes time


def large(datatype, *, typed):
    """Return a request of some megabytes, and its signature."""
    count = 2_000_000
    request = shaped(datatype, (1, count), typed=False)
    del request.raw_input_contents[:]
    if datatype == BYTES:
        strings = b"\x01\0\0\0a" * count
        if not typed:
            request.raw_input_contents.append(strings)
        else:
            request.inputs[0].contents.bytes_contents.extend([b"a"] * count)
    else:
        width = {"FP32": 4, "FP64": 8}.get(datatype, 1)
        data = bytes(count * width)
        head = field_head(pb.InferTensorContents, FIELD[datatype], len(data))
        request.inputs[0].contents.MergeFromString(head + data)
    return request, one_of(datatype)


@pytest.mark.parametrize(
    ("datatype", "typed"),
    [(BYTES, False), (BYTES, True), *((name, True) for name in sorted(FIELD.keys() - {BYTES}))],
)
def test_what_is_large_is_decoded_in_small_steps_and_not_before_it_is_asked_for(datatype, typed):
    request, signature = large(datatype, typed=typed)
    given = checked(request, signature).inputs
    pauses, steps = 0, given.decode()
    while True:
        try:
            next(steps)
        except StopIteration as end:
            (decoded,) = end.value.arrays
            break
        pauses += 1

    assert given.seconds > INLINE_SECONDS
    assert given.samples == 1
    # None of more elements than take a millisecond.
    assert pauses >= decoded.size // open_inference_contents._ELEMENTS_A_STEP


@pytest.mark.parametrize("datatype", sorted(DTYPES.keys() - {BYTES, "BOOL"}))
def test_raw_numbers_need_no_decoding_however_many(datatype):
    array = np.zeros((1, 1_000_000), DTYPES[datatype])
    request = request_of(x=array)
    given = checked(request, one_of(datatype)).inputs

    assert isinstance(given, ModelInputs)
    assert given.arrays[0].shape == array.shape


@pytest.mark.parametrize("datatype", ["FP32", "BOOL", "UINT8", BYTES])
def test_a_small_request_is_worth_no_thread(datatype):
    values = np.array(["abc"] * 784, dtype=object) if datatype == BYTES else np.ones(784, DTYPES[datatype])
    for request in (request_of(x=values[np.newaxis]), shaped(datatype, (1, 784), typed=True, elements=784)):
        given = checked(request, one_of(datatype)).inputs
        assert isinstance(given, ModelInputs) or given.seconds < INLINE_SECONDS


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("datatype", ["BOOL", "FP32", BYTES])
@pytest.mark.parametrize("sizes", [(1, 1000), (2**40, 2**40), (2**63 - 1, 2**63 - 1)])
def test_more_elements_than_there_is_data_are_refused_before_anything_is_predicted(typed, datatype, sizes):
    with pytest.raises(InvalidRequestError, match="input 'x' of shape"):
        checked(shaped(datatype, sizes, typed=typed, elements=20), one_of(datatype))


def test_what_is_wrong_with_values_is_told_when_they_are_decoded():
    far = shaped("UINT8", (1, 50_000), typed=True, elements=50_000)
    far.inputs[0].contents.uint_contents[49_999] = 256
    text = np.array([b"fine"] * 50_000, dtype=object)
    text[49_999] = b"\xff"

    assert refusal(far, one_of("UINT8")) == "input 'x': expected UINT8 values of 0 to 255, got 256"
    assert refusal(request_of(x=text[np.newaxis]), one_of(BYTES)) == (
        "input 'x' of shape [1, 50000]: expected UTF-8 text, which element 49999 is not"
    )


def test_large_answers_are_known_to_take_time_and_small_ones_not():
    small = [NamedTensor("y", "FP32", np.zeros((1, 1000), np.float32))]
    numbers = [NamedTensor("y", "FP32", np.zeros((1, 9_000_000), np.float32))]
    strings = [NamedTensor("y", BYTES, np.full((1, 100_000), "a", dtype=object))]

    assert encode_seconds(small) < INLINE_SECONDS
    assert encode_seconds(numbers) > INLINE_SECONDS
    assert encode_seconds(strings) > INLINE_SECONDS


def test_strings_of_an_answer_are_written_in_small_steps():
    strings = NamedTensor("y", BYTES, np.full((1, 100_000), "a", dtype=object))
    steps = encode_infer_response(pb.ModelInferRequest(), model="m", version="1", tensors=[strings])

    assert sum(1 for _ in steps) >= 100_000 // open_inference_contents._ELEMENTS_A_STEP


def test_a_scalar_is_no_batch():
    scalars = Signature((TensorSpec("x", "FP32", ()),), (LOGITS,), is_batched=True)

    assert refusal(request_of(x=np.float32(1).reshape(1)[0:1].reshape(())), scalars) == (
        "input 'x': expected shape [-1], got []"
    )
    assert decode(request_of(x=np.zeros(2, np.float32)), scalars).inputs[0].shape == (2,)


def test_inputs_must_agree_on_the_batch():
    signature = Signature((IMAGES, TensorSpec("mask", "BOOL", ())), (LOGITS,), is_batched=True)
    request = request_of(images=np.zeros((2, 4, 4, 3), np.uint8), mask=np.zeros(3, np.bool_))

    assert refusal(request, signature) == "input 'mask': expected a batch of 2, as 'images' has, got 3"


def test_the_data_must_be_as_long_as_the_shape_says():
    short = image_request()
    short.raw_input_contents[0] = b"x" * 40
    none = image_request()
    del none.raw_input_contents[:]
    two = image_request()
    two.raw_input_contents.append(b"")
    typed = image_request()
    del typed.raw_input_contents[:]
    typed.inputs[0].contents.uint_contents.extend([1] * 47)

    assert refusal(short) == "input 'images' of shape [1, 4, 4, 3]: expected 48 bytes, got 40"
    assert refusal(none) == (
        "input 'images' of shape [1, 4, 4, 3]: expected 48 elements in uint_contents, got 0"
    )
    assert refusal(two) == "raw_input_contents: expected 1, one for each input, got 2"
    assert refusal(typed) == (
        "input 'images' of shape [1, 4, 4, 3]: expected 48 elements in uint_contents, got 47"
    )


def test_raw_and_typed_contents_are_never_mixed():
    request = image_request()
    request.inputs[0].contents.uint_contents.extend([1] * 48)

    assert refusal(request) == ("input 'images': expected no contents, since raw_input_contents has the data")


def test_typed_contents_must_be_in_their_field_and_in_range():
    wrong = image_request()
    del wrong.raw_input_contents[:]
    wrong.inputs[0].contents.fp32_contents.extend([1] * 48)
    large = image_request()
    del large.raw_input_contents[:]
    large.inputs[0].contents.uint_contents.extend([1] * 47 + [256])

    assert refusal(wrong) == "input 'images': expected uint_contents for UINT8, got fp32_contents"
    assert refusal(large) == "input 'images': expected UINT8 values of 0 to 255, got 256"


def test_shared_memory_is_refused_by_name():
    request = image_request()
    request.inputs[0].parameters["shared_memory_region"].string_param = "mine"
    output = image_request()
    output.outputs.add(name="logits").parameters["shared_memory_region"].string_param = "mine"

    assert "shared memory region, which is not supported" in refusal(request)
    assert refusal(output) == "output 'logits': shared memory is not supported"


def test_the_timeout_is_in_microseconds_and_zero_is_none():
    request = image_request()
    assert decode(request).timeout is None
    request.parameters["timeout"].int64_param = 0
    assert decode(request).timeout is None
    request.parameters["timeout"].uint64_param = 1_500_000
    assert decode(request).timeout == 1.5
    request.parameters["timeout"].int64_param = -1
    assert refusal(request) == (
        "parameters[timeout]: expected a whole number of microseconds from 0 up, got -1"
    )
    request.parameters["timeout"].string_param = "soon"
    assert refusal(request).endswith("got 'soon'")


def test_sequences_are_refused_and_their_defaults_are_not():
    request = image_request()
    request.parameters["sequence_id"].int64_param = 0
    request.parameters["sequence_start"].bool_param = False
    request.parameters["mine"].string_param = "is ignored"
    assert len(decode(request).inputs) == 1
    request.parameters["sequence_id"].string_param = "conversation"

    assert refusal(request) == (
        "parameters[sequence_id]: expected none, models here keep no state between requests"
    )


@pytest.mark.parametrize("value", [{"int64_param": 0}, {"string_param": "2"}, {"bool_param": True}, {}])
def test_classification_wants_a_number_of_classes(value):
    request = image_request()
    request.outputs.add(name="logits").parameters["classification"].CopyFrom(pb.InferParameter(**value))

    assert "classification: expected a whole number of classes from 1 up" in refusal(request)


def test_text_has_no_classes():
    signature = Signature((IMAGES,), (TensorSpec("words", "BYTES", (3,)),), is_batched=True)
    request = image_request()
    request.outputs.add(name="words").parameters["classification"].int64_param = 1

    assert refusal(request, signature) == (
        "output 'words': classification needs numbers, its datatype is BYTES"
    )


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_an_image_model_takes_encoded_images(shape):
    request = request_of(images=np.array([b"jpeg", b"png"], dtype=object).reshape(shape))

    for one in (request, typed_bytes(request)):
        command = decode(one, takes_images=True)
        assert (command.images, list(command.inputs)) == ([b"jpeg", b"png"], [])
        assert checked(one, takes_images=True).inputs.samples == 2
    assert refusal(request) == "input 'images': expected datatype UINT8, got 'BYTES'"


def typed_bytes(request):
    typed = pb.ModelInferRequest(inputs=request.inputs)
    typed.inputs[0].contents.bytes_contents.extend([b"jpeg", b"png"])
    return typed


def test_encoded_images_have_a_shape_too():
    request = request_of(images=np.array([b"a", b"b"], dtype=object).reshape(1, 2))
    none = request_of(images=np.array([], dtype=object).reshape(0, 1))

    assert refusal(request, takes_images=True) == (
        "input 'images': expected shape [-1] or [-1, 1] of encoded images, got [1, 2]"
    )
    assert refusal(none, takes_images=True) == "input 'images': expected a batch of 1 to 8, got 0"


def test_text_that_is_no_utf8_is_refused():
    signature = Signature((TensorSpec("x", BYTES, ()),), (LOGITS,), is_batched=True)
    request = request_of(x=np.array([b"fine", b"\xff"], dtype=object))

    assert refusal(request, signature) == (
        "input 'x' of shape [2]: expected UTF-8 text, which element 1 is not"
    )
    fine = request_of(x=np.array(["fine", "é"], dtype=object))
    assert list(decode(fine, signature).inputs[0]) == ["fine", "é"]
