"""Inference and what is said of models, after tests of Triton's qa/ that each docstring names."""

import asyncio
import io
from importlib.metadata import version

import grpc
import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import (
    InferenceServerClient,
    InferInput,
    InferRequestedOutput,
    KeepAliveOptions,
    aio,
    service_pb2,
)

from vistazo_export.networks import digits

INVALID = "StatusCode.INVALID_ARGUMENT"
NOT_FOUND = "StatusCode.NOT_FOUND"
A = np.arange(16, dtype=np.int32).reshape(1, 16)
B = np.ones((1, 16), dtype=np.int32)

NUMPY = {
    "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
    "FP16": np.float16, "FP32": np.float32, "FP64": np.float64,
}  # fmt: skip

TYPED = {
    "BOOL": "bool_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


def simple_inputs(tensor, a=A, b=B):
    return [tensor(a, "INPUT0"), tensor(b, "INPUT1")]


def outputs(*names, **options):
    return [InferRequestedOutput(name, **options) for name in names]


def extremes(datatype):
    """Return values of a type at the ends of its range, as 2×3."""
    if datatype == "BOOL":
        return np.array([[True, False, True], [False, False, True]])
    if datatype == "BYTES":
        return np.array([[b"", b"a", b"\xc3\xa9"], [b"x" * 1000, b"0", b"\n"]], dtype=np.object_)
    dtype = NUMPY[datatype]
    info = np.finfo(dtype) if np.issubdtype(dtype, np.floating) else np.iinfo(dtype)
    return np.array([[info.min, info.max, 0], [1, 2, 3]], dtype=dtype)


def test_sum_and_difference(client, tensor):
    """L0_simple_example: simple_grpc_infer_client."""
    result = client.infer("simple", simple_inputs(tensor), outputs=outputs("OUTPUT0", "OUTPUT1"))

    assert np.array_equal(result.as_numpy("OUTPUT0"), A + B)
    assert np.array_equal(result.as_numpy("OUTPUT1"), A - B)


def test_a_string_input_and_output(client, tensor):
    """L0_simple_example: simple_grpc_string_infer_client; L0_string_io: non-UTF-8 aside, any bytes."""
    sent = extremes("BYTES")
    result = client.infer("identity_bytes", [tensor(sent)])

    assert result.as_numpy("OUTPUT0").tolist() == sent.tolist()


@pytest.mark.parametrize("datatype", [*NUMPY, "BOOL"])
def test_every_type_comes_back_bit_by_bit(client, tensor, datatype):
    """L0_infer: InferTest.test_raw_*."""
    sent = extremes(datatype)
    got = client.infer(f"identity_{datatype.lower()}", [tensor(sent)]).as_numpy("OUTPUT0")

    assert got.dtype == sent.dtype
    assert np.array_equal(got, sent)


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents_do_as_well_as_raw_ones(stub, datatype):
    """L0_grpc: grpc_explicit_*_content_client."""
    sent = extremes(datatype)
    request = service_pb2.ModelInferRequest(model_name=f"identity_{datatype.lower()}", id="typed")
    given = request.inputs.add(name="INPUT0", datatype=datatype, shape=sent.shape)
    getattr(given.contents, TYPED[datatype]).extend(sent.ravel().tolist())
    response = stub.ModelInfer(request)

    assert response.id == "typed"
    assert (response.outputs[0].name, response.outputs[0].datatype) == ("OUTPUT0", datatype)
    assert list(response.outputs[0].shape) == list(sent.shape)
    if datatype != "BYTES":
        assert response.raw_output_contents[0] == sent.tobytes()


def test_millions_of_typed_elements(stub):
    """L0_grpc: python_unit_test, large typed contents; here as many as the server's message limit takes."""
    count = 3_000_000
    request = service_pb2.ModelInferRequest(model_name="identity_fp32")
    given = request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, count])
    given.contents.fp32_contents.extend([0.5] * count)
    (content,) = stub.ModelInfer(request).raw_output_contents

    assert np.frombuffer(content, np.float32).sum() == count / 2


def test_typed_and_raw_contents_are_never_mixed(stub):
    """L0_grpc: contents beside raw_input_contents are refused."""
    request = service_pb2.ModelInferRequest(model_name="identity_fp32", raw_input_contents=[b"\0" * 4])
    given = request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 1])
    given.contents.fp32_contents.append(1)

    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "INPUT0" in caught.value.details()


def test_no_input_at_all(client, refusal):
    """L0_input_validation: InputValTest.test_input_validation_required_empty."""
    error = refusal(client.infer, "input_all_required", [])

    assert error.status() == INVALID
    assert all(name in error.message() for name in ("INPUT0", "INPUT1", "INPUT2"))


def test_two_of_three_inputs_missing(client, tensor, refusal):
    """L0_input_validation: InputValTest.test_input_validation_required_missing."""
    error = refusal(client.infer, "input_all_required", [tensor(np.zeros((1, 1), np.float32))])

    assert error.status() == INVALID
    assert all(name in error.message() for name in ("INPUT1", "INPUT2"))


def test_an_input_that_the_model_does_not_have(client, tensor, refusal):
    """L0_input_validation: an unexpected input is named."""
    error = refusal(client.infer, "simple", [*simple_inputs(tensor), tensor(A, "INPUT7")])

    assert error.status() == INVALID
    assert "INPUT7" in error.message()


def test_more_bytes_than_the_shape_says(client, refusal):
    """L0_input_validation: InputShapeTest.test_input_shape_validation."""
    given = InferInput("INPUT0", [1, 10], "FP32")
    given.set_data_from_numpy(np.zeros((1, 10), np.float32))
    given.set_shape([1, 8])
    error = refusal(client.infer, "fixed_8", [given])

    assert error.status() == INVALID
    assert "INPUT0" in error.message()
    assert "32" in error.message()
    assert "40" in error.message()


def test_another_type_than_the_models(client, tensor, refusal):
    """L0_input_validation: a datatype that is not the model's."""
    error = refusal(client.infer, "fixed_8", [tensor(np.zeros((1, 8), np.float64))])

    assert error.status() == INVALID
    assert "FP32" in error.message()
    assert "FP64" in error.message()


@pytest.mark.parametrize("name", ["..", "../simple", "", "/etc", "a\nb", "x" * 10_000])
def test_names_that_are_no_models(client, tensor, refusal, name):
    """L0_input_validation: path traversal and blank names; the server lives."""
    error = refusal(client.infer, name, simple_inputs(tensor))

    assert error.status() in {NOT_FOUND, INVALID}
    assert "\n" not in error.message()
    assert len(error.message()) < 2000
    assert client.is_server_live()


def test_an_output_that_the_model_does_not_have(client, tensor, refusal):
    """L0_output_name: OutputNameValidationTest.test_grpc."""
    error = refusal(client.infer, "simple", simple_inputs(tensor), outputs=outputs("DUMMY"))

    assert error.status() == INVALID
    assert "DUMMY" in error.message()


def test_the_same_output_twice(client, tensor, refusal):
    """L0_grpc: python_unit_test, duplicate requested outputs are refused and the server stays live."""
    error = refusal(client.infer, "simple", simple_inputs(tensor), outputs=outputs("OUTPUT0", "OUTPUT0"))

    assert error.status() == INVALID
    assert "OUTPUT0" in error.message()
    assert client.is_server_live()


def test_only_the_outputs_asked_for_come_in_that_order(client, tensor):
    """L0_infer: requested outputs."""
    one = client.infer("simple", simple_inputs(tensor), outputs=outputs("OUTPUT1"))
    both = client.infer("simple", simple_inputs(tensor), outputs=outputs("OUTPUT1", "OUTPUT0"))

    assert [output.name for output in one.get_response().outputs] == ["OUTPUT1"]
    assert [output.name for output in both.get_response().outputs] == ["OUTPUT1", "OUTPUT0"]
    assert one.as_numpy("OUTPUT0") is None


def test_numbers_that_are_none_pass_exactly(client, tensor):
    """L0_nan_inf: NanInfTest.test_grpc."""
    got = client.infer("nan_inf_output", [tensor(np.ones((1, 1), np.float32))]).as_numpy("OUTPUT0")

    assert np.array_equal(got, [[np.nan, np.inf, -np.inf, 1, 2, 3]], equal_nan=True)


def test_tensors_without_elements(client, tensor, refusal):
    """Not as L0_infer_zero's InferZeroTest.test_ff1_sanity: most graphs fail on a size of 0."""
    error = refusal(client.infer, "identity_fp32", [tensor(np.zeros((2, 0), np.float32))])

    assert error.status() == INVALID
    assert "'INPUT0': expected shape [-1, -1], with sizes from 1 up, got [2, 0]" in error.message()


def test_a_batch_of_none(client, tensor, refusal):
    """L0_infer_zero: a batch of 0 has nothing to answer."""
    error = refusal(client.infer, "identity_fp32", [tensor(np.zeros((0, 4), np.float32))])

    assert error.status() == INVALID
    assert "INPUT0" in error.message()


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_sizes_that_the_graph_leaves_open(client, tensor, size):
    """L0_infer_variable: InferVariableTest.test_raw_fff."""
    sent = np.random.default_rng(size).random((3, size), np.float32)

    assert np.array_equal(client.infer("identity_fp32", [tensor(sent)]).as_numpy("OUTPUT0"), sent)


def test_a_payload_at_the_limit_and_one_beyond(client, tensor, refusal):
    """L0_large_payload: LargePayLoadTest.test_onnx, scaled to this server's message limit of 64 MiB."""
    large = np.random.default_rng(0).random((1, 15_000_000), np.float32)
    assert np.array_equal(client.infer("identity_fp32", [tensor(large)]).as_numpy("OUTPUT0"), large)
    too_large = np.zeros((1, 20_000_000), np.float32)
    assert (
        refusal(client.infer, "identity_fp32", [tensor(too_large)]).status()
        == "StatusCode.RESOURCE_EXHAUSTED"
    )

    small = np.ones((1, 1), np.float32)
    assert np.array_equal(client.infer("identity_fp32", [tensor(small)]).as_numpy("OUTPUT0"), small)


def test_no_batch_for_a_model_with_batches(client, tensor, refusal):
    """L0_client_nobatch: ClientNoBatchTest.test_nobatch_request_for_batching_model."""
    assert refusal(client.infer, "simple", simple_inputs(tensor, A[0], B[0])).status() == INVALID


def test_a_batch_for_a_model_without(client, tensor, refusal):
    """L0_client_nobatch: ClientNoBatchTest.test_batch_request_for_nobatching_model."""
    assert refusal(client.infer, "simple_nobatch", simple_inputs(tensor)).status() == INVALID


def test_no_batch_for_a_model_without(client, tensor):
    """L0_client_nobatch: ClientNoBatchTest.test_nobatch_request_for_nonbatching_model."""
    result = client.infer("simple_nobatch", simple_inputs(tensor, A[0], B[0]))

    assert np.array_equal(result.as_numpy("OUTPUT0"), (A + B)[0])


def test_a_batch_for_a_model_with_batches(client, tensor):
    """L0_client_nobatch: ClientNoBatchTest.test_batch_request_for_batching_model, with several samples."""
    a, b = np.tile(A, (5, 1)), np.arange(80, dtype=np.int32).reshape(5, 16)
    result = client.infer("simple", simple_inputs(tensor, a, b))

    assert np.array_equal(result.as_numpy("OUTPUT1"), a - b)


def test_inputs_with_different_batches(client, tensor, refusal):
    """L0_batcher: inputs of one request must agree about the batch."""
    error = refusal(client.infer, "simple", simple_inputs(tensor, A, np.ones((2, 16), np.int32)))

    assert error.status() == INVALID


def test_classes_instead_of_numbers(client, tensor):
    """L0_parameters: class_count_test, ClassificationParameterTest.test_classificattion."""
    result = client.infer(
        "identity_fp32", [tensor(np.ones((1, 8), np.float32))], outputs=outputs("OUTPUT0", class_count=5)
    )
    got = result.as_numpy("OUTPUT0")

    assert result.get_output("OUTPUT0").datatype == "BYTES"
    assert got.shape == (1, 5)
    assert all(value.startswith(b"1.000000:") for value in got[0])


def test_classes_have_the_models_labels(client, tensor):
    """L0_infer: InferTest.test_class_*; "value:index:label", best first."""
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    pixels[0, ..., 1], pixels[1, ..., 2] = 200, 100
    result = client.infer("tiny", [tensor(pixels, "images")], outputs=outputs("logits", class_count=2))
    first, second = result.as_numpy("logits").tolist()

    assert first[0] == b"20.000000:1:green"
    assert second[0] == b"10.000000:2:blue"
    assert len(first) == 2


def test_handwritten_digits_are_read_from_their_files(client, tensor):
    """L0_infer: image_client.py, classes of encoded images; the server prepares them."""
    held_out = digits.held_out()
    files = []
    for image in held_out.images[:20]:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        files.append(file.getvalue())
    result = client.infer(
        "lenet",
        [tensor(np.array(files, dtype=np.object_), "images")],
        outputs=outputs("logits", class_count=1),
    )
    read = [int(value.decode().split(":")[2]) for value in result.as_numpy("logits")[:, 0]]

    assert sum(a == b for a, b in zip(read, held_out.labels[:20], strict=True)) >= 18


def test_classes_of_text_are_refused(client, tensor, refusal):
    """L0_parameters: class_count_test, test_classificattion_unsupported_data_type."""
    sent = np.array([["test"] * 8], dtype=np.object_)
    error = refusal(client.infer, "identity_bytes", [tensor(sent)], outputs=outputs("OUTPUT0", class_count=5))

    assert error.status() == INVALID
    assert "BYTES" in error.message()


def test_more_classes_than_there_are(client, tensor):
    """L0_infer: a class count above the number of classes gives all of them."""
    result = client.infer(
        "tiny", [tensor(np.zeros((1, 4, 4, 3), np.uint8), "images")], outputs=outputs("logits", class_count=9)
    )

    assert result.as_numpy("logits").shape == (1, 3)


def test_server_metadata(client):
    """L0_server_status: ServerMetadataTest.test_basic."""
    metadata = client.get_server_metadata()

    assert client.is_server_live()
    assert client.is_server_ready()
    assert metadata.version == version("vistazo")
    assert {"classification", "model_repository", "model_configuration", "statistics"} <= set(
        metadata.extensions
    )
    # Those of Triton's that this server does not have.
    assert not {"system_shared_memory", "cuda_shared_memory", "sequence", "trace"} & set(metadata.extensions)


def test_metadata_of_an_unknown_model(client, refusal):
    """L0_server_status: ServerMetadataTest.test_unknown_model."""
    error = refusal(client.get_model_metadata, "foo")

    assert error.status() == NOT_FOUND
    assert "foo" in error.message()


def test_metadata_of_an_unknown_version(client, refusal):
    """L0_server_status: ServerMetadataTest.test_unknown_model_version."""
    error = refusal(client.get_model_metadata, "simple", model_version="99")

    assert error.status() == NOT_FOUND
    assert "99" in error.message()


def test_metadata_of_a_model(client):
    """L0_server_status: ModelMetadataTest.test_model_latest_infer, what it says of the model."""
    metadata = client.get_model_metadata("simple")

    assert (metadata.name, metadata.platform, list(metadata.versions)) == (
        "simple",
        "onnxruntime_onnx",
        ["1"],
    )
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("INPUT0", "INT32", [-1, 16]),
        ("INPUT1", "INT32", [-1, 16]),
    ]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [
        ("OUTPUT0", "INT32", [-1, 16]),
        ("OUTPUT1", "INT32", [-1, 16]),
    ]


def test_configuration_of_a_model(client):
    """L0_server_status: the configuration agrees with the metadata."""
    config = client.get_model_config("simple").config
    nobatch = client.get_model_config("simple_nobatch").config

    assert (config.name, config.platform) == ("simple", "onnxruntime_onnx")
    assert config.max_batch_size > 0
    assert [(t.name, list(t.dims)) for t in config.input] == [("INPUT0", [16]), ("INPUT1", [16])]
    assert nobatch.max_batch_size == 0
    assert [(t.name, list(t.dims)) for t in nobatch.input] == [("INPUT0", [16]), ("INPUT1", [16])]


def test_every_model_is_ready_described_and_answers(client, tensor):
    """L0_lifecycle and L0_infer: infer on every model of the index, on what its metadata asks for."""
    models = [model.name for model in client.get_model_repository_index().models]
    assert {"simple", "tiny", "identity_fp32"} <= set(models)
    for model in models:
        assert client.is_model_ready(model)
        metadata = client.get_model_metadata(model)
        inputs = []
        for given in metadata.inputs:
            shape = [abs(size) for size in given.shape]
            numpy_type = {"BOOL": np.bool_, "BYTES": np.object_}.get(given.datatype) or NUMPY[given.datatype]
            array = (
                np.full(shape, "", np.object_) if given.datatype == "BYTES" else np.zeros(shape, numpy_type)
            )
            inputs.append(tensor(array, given.name))
        result = client.infer(model, inputs)

        response = result.get_response()
        assert (response.model_name, response.model_version) == (model, metadata.versions[-1])
        for described, output in zip(metadata.outputs, response.outputs, strict=True):
            assert (output.name, output.datatype) == (described.name, described.datatype)
            assert len(output.shape) == len(described.shape)
            assert result.as_numpy(output.name) is not None


def test_readiness_of_what_is_not_there(client):
    """L0_lifecycle: is_model_ready of an unknown model or version is no, not an error."""
    assert not client.is_model_ready("foo")
    assert not client.is_model_ready("simple", "99")


def test_the_same_objects_are_used_again(client, tensor):
    """L0_grpc: reuse_infer_objects_client."""
    inputs, asked = simple_inputs(tensor), outputs("OUTPUT0", "OUTPUT1")
    for factor in (1, 2, 3):
        inputs[1].set_data_from_numpy(B * factor)
        result = client.infer("simple", inputs, outputs=asked)

        assert np.array_equal(result.as_numpy("OUTPUT1"), A - B * factor)


def test_callbacks_bring_every_answer_to_its_own_request(client, tensor, inbox):
    """L0_simple_example: simple_grpc_async_infer_client."""
    for number in range(50):
        client.async_infer(
            "simple", simple_inputs(tensor, A + number), inbox.callback, request_id=str(number)
        )
    answers = {
        int(result.get_response().id): result.as_numpy("OUTPUT0")
        for result in (inbox.result() for _ in range(50))
    }

    assert sorted(answers) == list(range(50))
    assert all(np.array_equal(answer, A + number + B) for number, answer in answers.items())


def test_a_stream_brings_every_answer_to_its_own_request(client, tensor, inbox):
    """L0_simple_example: simple_grpc_sequence_stream_infer_client, without sequences."""
    client.start_stream(inbox.callback)
    for number in range(50):
        client.async_stream_infer("simple", simple_inputs(tensor, A + number), request_id=str(number))
    results = [inbox.result() for _ in range(50)]
    client.stop_stream()
    answers = {int(result.get_response().id): result.as_numpy("OUTPUT0") for result in results}

    assert sorted(answers) == list(range(50))
    assert all(np.array_equal(answer, A + number + B) for number, answer in answers.items())


def test_an_error_on_a_stream_leaves_it_open(client, tensor, inbox):
    """L0_grpc: an error is the answer to one request, and the stream goes on."""
    client.start_stream(inbox.callback)
    client.async_stream_infer("foo", simple_inputs(tensor))
    error = inbox.error()
    client.async_stream_infer("simple", simple_inputs(tensor))
    result = inbox.result()
    client.stop_stream()

    assert "foo" in error.message()
    assert np.array_equal(result.as_numpy("OUTPUT0"), A + B)


def test_streams_that_are_dropped_with_answers_under_way(client, tensor, inbox, until, metric):
    """L0_grpc_state_cleanup: CleanUpTest.test_decoupled_cancellation, at every stage of an answer."""
    large = np.zeros((1, 100_000), np.float32)
    for received in range(10):
        client.start_stream(inbox.callback)
        for _ in range(20):
            client.async_stream_infer("identity_fp32", [tensor(large)])
        for _ in range(received):
            inbox.result()
        client.stop_stream(cancel_requests=True)
        while not inbox.items.empty():
            inbox.items.get()

    until(lambda: metric("vistazo_inference_in_flight_requests", model="identity_fp32") == 0)
    assert client.infer("identity_fp32", [tensor(large)]).as_numpy("OUTPUT0").shape == large.shape


async def test_the_asyncio_client_does_all_of_it(server, tensor):
    """L0_grpc: simple_grpc_aio_infer_client."""
    async with aio.InferenceServerClient(server.address) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("simple")
        assert (await client.get_model_metadata("simple")).name == "simple"
        assert (await client.get_model_config("simple")).config.name == "simple"
        assert (await client.get_server_metadata()).version == version("vistazo")
        assert len((await client.get_model_repository_index()).models) >= 10
        results = await asyncio.gather(
            *(client.infer("simple", simple_inputs(tensor, A + number)) for number in range(20))
        )
        assert all(
            np.array_equal(result.as_numpy("OUTPUT0"), A + number + B)
            for number, result in enumerate(results)
        )
        assert (await client.get_inference_statistics("simple")).model_stats[0].inference_count >= 20


async def test_the_asyncio_clients_stream(server, tensor):
    """L0_grpc: simple_grpc_aio_sequence_stream_infer_client, without sequences."""

    async def requests():
        for number in range(20):
            yield {
                "model_name": "simple",
                "inputs": simple_inputs(tensor, A + number),
                "request_id": str(number),
            }

    async with aio.InferenceServerClient(server.address) as client:
        answers = {}
        async for result, error in client.stream_infer(requests()):
            assert error is None
            answers[int(result.get_response().id)] = result.as_numpy("OUTPUT0")

    assert sorted(answers) == list(range(20))
    assert all(np.array_equal(answer, A + number + B) for number, answer in answers.items())


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(client, tensor, algorithm):
    """L0_grpc: the clients' -C option."""
    result = client.infer("simple", simple_inputs(tensor), compression_algorithm=algorithm)

    assert np.array_equal(result.as_numpy("OUTPUT0"), A + B)


def test_keepalive_and_channel_arguments(server, tensor):
    """L0_grpc: simple_grpc_keepalive_client and simple_grpc_custom_args_client."""
    keepalive = KeepAliveOptions(keepalive_time_ms=30_000, keepalive_permit_without_calls=True)
    arguments = [("grpc.lb_policy_name", "round_robin")]
    for options in ({"keepalive_options": keepalive}, {"channel_args": arguments}):
        with InferenceServerClient(server.address, **options) as client:
            assert np.array_equal(client.infer("simple", simple_inputs(tensor)).as_numpy("OUTPUT0"), A + B)


def test_parameters_that_nobody_knows_are_let_pass(client, tensor):
    """L0_parameters: InferenceParametersTest, request parameters of the caller's own."""
    parameters = {"custom": "value", "number": 7, "flag": True}
    result = client.infer("simple", simple_inputs(tensor), parameters=parameters, priority=1)

    assert np.array_equal(result.as_numpy("OUTPUT0"), A + B)


def test_sequences_are_refused(client, tensor, refusal):
    """L0_sequence_batcher: models here keep no state, and say so."""
    error = refusal(client.infer, "simple", simple_inputs(tensor), sequence_id=7, sequence_start=True)

    assert error.status() == INVALID
    assert "sequence" in error.message()


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("get_trace_settings", ()),
        ("get_log_settings", ()),
        ("get_system_shared_memory_status", ()),
        ("get_cuda_shared_memory_status", ()),
        ("register_system_shared_memory", ("region", "/key", 64)),
        ("unregister_system_shared_memory", ()),
    ],
)
def test_what_is_not_served_says_so(client, refusal, method, arguments):
    """L0_shared_memory, L0_trace, L0_logging: switched off; the client learns it by the status."""
    assert refusal(getattr(client, method), *arguments).status() == "StatusCode.UNIMPLEMENTED"


def test_an_image_in_shared_memory_is_refused(client, refusal):
    """L0_shared_memory: an input that points to a region that cannot be."""
    given = InferInput("INPUT0", [1, 16], "INT32")
    given.set_shared_memory("region", 64)
    other = InferInput("INPUT1", [1, 16], "INT32")
    other.set_shared_memory("region", 64)

    assert refusal(client.infer, "simple", [given, other]).status() == INVALID


@pytest.mark.parametrize("method", ["load_model", "unload_model"])
def test_models_are_not_the_callers_to_load(client, refusal, method):
    """L0_lifecycle: LifeCycleTest.test_model_control_disallowed, outside explicit model control."""
    error = refusal(getattr(client, method), "simple")

    assert error.status() == "StatusCode.FAILED_PRECONDITION"
    assert "explicit" in error.message()
    assert client.is_model_ready("simple")


def test_statistics_count_requests_samples_and_runs(client, tensor):
    """L0_server_status: ModelMetadataTest.test_model_latest_infer, its statistics; L0_infer_reporting."""
    before = client.get_inference_statistics("fixed_8").model_stats[0]
    for samples in (1, 1, 3):
        client.infer("fixed_8", [tensor(np.zeros((samples, 8), np.float32))])
    after = client.get_inference_statistics("fixed_8").model_stats[0]
    stats = after.inference_stats

    assert (after.name, after.version) == ("fixed_8", "1")
    assert after.inference_count - before.inference_count == 5
    assert after.execution_count - before.execution_count == 3
    assert stats.success.count - before.inference_stats.success.count == 3
    assert stats.fail.count == before.inference_stats.fail.count
    for part in (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output):
        assert part.count >= 3
    assert stats.compute_infer.ns > 0
    assert stats.success.ns >= stats.queue.ns
    assert after.last_inference > before.last_inference
    counts = {batch.batch_size: batch.compute_infer.count for batch in after.batch_stats}
    assert counts[1] >= 2
    assert counts[3] >= 1
    assert sum(counts.values()) == after.execution_count


def test_statistics_count_failures(client, tensor, refusal):
    """L0_response_statistics: a request that is refused fails, and succeeds in nothing."""
    before = client.get_inference_statistics("simple").model_stats[0].inference_stats
    refusal(client.infer, "simple", [tensor(A)])
    after = client.get_inference_statistics("simple").model_stats[0].inference_stats

    assert after.success.count == before.success.count
    assert after.fail.count == before.fail.count + 1


def test_statistics_of_all_models_at_once(client):
    """L0_server_status: statistics without a name are of every model."""
    names = {stats.name for stats in client.get_inference_statistics().model_stats}

    assert {"simple", "tiny", "identity_fp32"} <= names


def test_metrics_count_what_was_inferred(client, tensor, metric):
    """L0_metrics: request, inference and execution counts on the metrics page."""
    labels = {"model": "input_all_required"}
    names = (
        "vistazo_inference_requests_total",
        "vistazo_inference_samples_total",
        "vistazo_inference_batches_total",
    )
    before = [metric(name, **labels) for name in names]
    inputs = [tensor(np.ones((4, 1), np.float32), f"INPUT{number}") for number in range(3)]
    client.infer("input_all_required", inputs)
    after = [metric(name, **labels) for name in names]

    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 4, 1]
    assert metric("vistazo_inference_requests_total", **labels, outcome="ok") >= 1
