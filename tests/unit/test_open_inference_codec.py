"""The codec of Open Inference: what a request may say, and what it is told when it may not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vistazo_proto import open_inference_pb2 as pb
from vistazo_server.errors import InvalidRequestError
from vistazo_server.open_inference_codec import (
    decode_infer_request,
    encode_infer_response,
)
from vistazo_server.predictor import NamedTensor, OutputChoice
from vistazo_server.tensors import BYTES, DTYPES, FREE, Signature, TensorSpec, as_text, encode_raw

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
        raw_input_contents=[encode_raw(array) for array in arrays.values()],
    )


def decode(request, signature=IMAGE_MODEL, *, takes_images=False, max_samples=8):
    return decode_infer_request(request, signature, takes_images=takes_images, max_samples=max_samples)


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


def arrays_of(datatype):
    shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=4)
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
        assert encode_raw(decoded) == encode_raw(array)
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
def test_a_response_gives_back_what_a_request_brought(datatype):
    @given(arrays_of(datatype))
    def check(array):
        request = pb.ModelInferRequest(id="me")
        response = encode_infer_response(
            request, model="m", version="2", tensors=[NamedTensor("y", datatype, array)]
        )
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
        assert encode_raw(back) == encode_raw(array)

    check()


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
        assert decode(request, signature).samples == 3


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


def test_a_scalar_is_no_batch():
    scalars = Signature((TensorSpec("x", "FP32", ()),), (LOGITS,), is_batched=True)

    assert refusal(request_of(x=np.float32(1).reshape(1)[0:1].reshape(())), scalars) == (
        "input 'x': expected shape [-1], got []"
    )
    assert decode(request_of(x=np.zeros(2, np.float32)), scalars).samples == 2


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
    assert decode(request).samples == 1
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
        assert (command.images, command.samples, list(command.inputs)) == ([b"jpeg", b"png"], 2, [])
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
    assert list(decode(fine, signature).inputs[0]) == list(as_text([b"fine", "é".encode()]))
