"""Open Inference over plain gRPC: what a request gets, whatever the model, and what a wrong one is told.

The stubs are ours; the ecosystem's own clients are tried in subprocesses elsewhere.
"""

import asyncio
import time
from dataclasses import dataclass

import grpc
import numpy as np
import onnxruntime
import pytest
from google.protobuf import json_format
from onnx import TensorProto, helper, numpy_helper

from support.foreign import classifier
from support.graphs import graph, identity, mean_of_any_size, sum_and_difference, write_graph
from support.images import file
from support.serving import (
    PATIENCE_SECONDS,
    encoded,
    occupy,
    probabilities,
    pushback,
    raw,
    serving,
    softmax,
    until,
)
from support.tiny import LABELS, plain, tiny_manifest, tiny_model, write_model
from vistazo_proto import classification_pb2 as cls
from vistazo_proto import manifest_pb2
from vistazo_proto import open_inference_pb2 as pb
from vistazo_proto import open_inference_pb2_grpc as pb_grpc
from vistazo_server.engine.tensors import DTYPES
from vistazo_server.inference.raw_tensors import decode_raw, decode_raw_bytes, encode_raw
from vistazo_server.inference.side_thread import at_once
from vistazo_server.rpc.wire import field_head

RED, GREEN, BLUE = plain(200, 20, 10), plain(10, 200, 20), plain(20, 10, 200)
NAMES = {dtype: name for name, dtype in DTYPES.items()}
TYPED_FIELDS = {
    "BOOL": "bool_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


@dataclass
class OpenInference:
    """The stub of the service, and what tests do with it."""

    stub: pb_grpc.GRPCInferenceServiceStub

    def __init__(self, server) -> None:
        self.stub = pb_grpc.GRPCInferenceServiceStub(server.channel)

    async def infer(self, model, **inputs):
        """Return the outputs of a request, by name."""
        return arrays_of(await self.stub.ModelInfer(request_of(model, **inputs), timeout=PATIENCE_SECONDS))

    async def refusal(self, request):
        """Return the status and the message with which a request is refused."""
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await self.stub.ModelInfer(request, timeout=PATIENCE_SECONDS)
        return refused.value.code(), refused.value.details()

    async def statistics(self, model, version=""):
        response = await self.stub.ModelStatistics(pb.ModelStatisticsRequest(name=model, version=version))
        (statistics,) = response.model_stats
        return statistics


def request_of(model, **inputs):
    """Return a request of raw tensors."""
    return pb.ModelInferRequest(
        model_name=model,
        inputs=[
            pb.ModelInferRequest.InferInputTensor(
                name=name, datatype=NAMES[np.asarray(array).dtype], shape=np.asarray(array).shape
            )
            for name, array in inputs.items()
        ],
        raw_input_contents=[raw_bytes(np.asarray(array)) for array in inputs.values()],
    )


def typed_request(model, **inputs):
    """Return a request of typed contents: of FP32, FP64, BOOL, or numbers from 0 to 127.

    Written without protobuf, which would hold the test's event loop for long.
    """
    request = request_of(model, **inputs)
    for tensor, array in zip(request.inputs, inputs.values(), strict=True):
        field = TYPED_FIELDS[tensor.datatype]
        data = (array if tensor.datatype in ("FP32", "FP64") else array.astype(np.uint8)).tobytes()
        tensor.contents.MergeFromString(field_head(pb.InferTensorContents, field, len(data)) + data)
    del request.raw_input_contents[:]
    return request


def raw_bytes(array):
    """Return a tensor's raw bytes."""
    return bytes(at_once(encode_raw(array)))


def images_of(model, *images):
    """Return a request of encoded images."""
    return request_of(model, images=np.array([*images, None], dtype=object)[:-1, np.newaxis])


def arrays_of(response):
    """Return the outputs of a response, by name."""
    arrays = {}
    for output, data in zip(response.outputs, response.raw_output_contents, strict=True):
        count = int(np.prod(output.shape, dtype=np.int64))
        if output.datatype == "BYTES":
            elements = at_once(decode_raw_bytes(data, count))
            flat = np.array([element.decode() for element in elements], dtype=object)
        else:
            flat = decode_raw(data, output.datatype, count)
        arrays[output.name] = flat.reshape(tuple(output.shape))
    return arrays


@pytest.fixture
def repository(tmp_path):
    """An empty repository."""
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


# The answer


async def test_an_image_model_takes_its_graphs_own_tensor_and_gives_its_logits(models):
    async with serving(models) as server:
        outputs = await OpenInference(server).infer("tiny", images=np.stack([RED, BLUE]))

    assert outputs.keys() == {"logits"}
    np.testing.assert_allclose(outputs["logits"], [[20, 2, 1], [2, 1, 20]], rtol=1e-6)


async def test_the_response_names_the_model_the_version_and_the_request(models):
    request = request_of("tiny", images=RED[np.newaxis])
    request.id = "number 7"
    async with serving(models) as server:
        response = await OpenInference(server).stub.ModelInfer(request)

    assert (response.model_name, response.model_version, response.id) == ("tiny", "1", "number 7")
    assert (response.outputs[0].name, response.outputs[0].datatype) == ("logits", "FP32")
    assert list(response.outputs[0].shape) == [1, 3]


async def test_encoded_images_get_what_classify_answers(models):
    """L0_infer's class outputs, of the images themselves."""
    files = [file(plain(120, 110, 100, height=40, width=30)), file(plain(1, 250, 3, height=9, width=90))]
    async with serving(models) as server:
        classified = await server.classify(*map(encoded, files))
        outputs = arrays_of(await OpenInference(server).stub.ModelInfer(images_of("tiny", *files)))

    for logits, result in zip(outputs["logits"], classified.results, strict=True):
        assert dict(zip(LABELS, softmax(*map(float, logits)), strict=True)) == pytest.approx(
            probabilities(result), abs=1e-6
        )


async def test_a_bad_image_fails_its_request_and_no_other(models):
    request = images_of("tiny", file(RED), b"this is no image")
    async with serving(models) as server:
        oip = OpenInference(server)
        bad, good = await asyncio.gather(
            oip.refusal(request), oip.stub.ModelInfer(images_of("tiny", file(RED)))
        )
        outcomes = server.outcomes()
        failures = server.sample("vistazo_image_decode_failures_total", model="tiny", version="1")

    assert bad[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert bad[1].startswith("input 'images', element 1: expected a JPEG, PNG, WebP or BMP file")
    assert arrays_of(good)["logits"][0].argmax() == 0
    assert outcomes == {"ok": 1, "invalid": 1}
    assert failures == 1


async def test_several_inputs_and_outputs_keep_their_names(repository):
    write_graph(repository, "simple", sum_and_difference())
    a, b = np.arange(32, dtype=np.int32).reshape(2, 16), np.ones((2, 16), np.int32)
    async with serving(repository) as server:
        oip = OpenInference(server)
        outputs = await oip.infer("simple", INPUT1=b, INPUT0=a)
        request = request_of("simple", INPUT0=a, INPUT1=b)
        request.outputs.add(name="OUTPUT1")
        chosen = arrays_of(await oip.stub.ModelInfer(request))

    np.testing.assert_array_equal(outputs["OUTPUT0"], a + b)
    np.testing.assert_array_equal(outputs["OUTPUT1"], a - b)
    assert chosen.keys() == {"OUTPUT1"}


@pytest.mark.parametrize("datatype", sorted(DTYPES))
async def test_every_datatype_comes_back_to_the_bit(repository, datatype):
    write_graph(repository, "identity", identity(datatype))
    if datatype == "BYTES":
        array = np.array([["", "a\0b", "é"], ["x" * 1000, "y", "z"]], dtype=object)
    elif datatype == "BOOL":
        array = np.array([[True, False, True], [False, True, True]])
    else:
        kind = DTYPES[datatype]
        bounds = np.finfo(kind) if kind.kind == "f" else np.iinfo(kind)
        array = np.array([[bounds.min, 0, bounds.max], [1, 2, 3]], dtype=kind)
    async with serving(repository) as server:
        outputs = await OpenInference(server).infer("identity", x=array)

    assert raw_bytes(outputs["y"]) == raw_bytes(array)
    assert outputs["y"].shape == array.shape


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
async def test_nan_and_infinity_pass_through_to_the_bit(repository, datatype):
    """L0_nan_inf."""
    write_graph(repository, "identity", identity(datatype))
    array = np.array([[np.nan, np.inf, -np.inf], [-0.0, 0.0, np.nan]], dtype=DTYPES[datatype])
    async with serving(repository) as server:
        outputs = await OpenInference(server).infer("identity", x=array)

    assert outputs["y"].tobytes() == array.tobytes()


async def test_typed_contents_get_the_answer_of_raw_ones(models):
    typed = request_of("tiny", images=RED[np.newaxis])
    del typed.raw_input_contents[:]
    typed.inputs[0].contents.uint_contents.extend(RED.ravel().tolist())
    async with serving(models) as server:
        oip = OpenInference(server)
        outputs = arrays_of(await oip.stub.ModelInfer(typed))
        expected = await oip.infer("tiny", images=RED[np.newaxis])

    np.testing.assert_array_equal(outputs["logits"], expected["logits"])


async def test_millions_of_typed_elements_are_taken(repository):
    """L0_grpc/python_unit_test's large tensor, as large as a message may be."""
    write_graph(repository, "identity", identity("FP32", ("batch", "any")))
    values = np.arange(2_000_000, dtype=np.float32)
    typed = typed_request("identity", x=values[np.newaxis])
    async with serving(repository) as server:
        outputs = arrays_of(await OpenInference(server).stub.ModelInfer(typed))

    np.testing.assert_array_equal(outputs["y"][0], values)


# Batches


async def test_a_request_larger_than_a_batch_is_split_and_put_together_again(models):
    images = np.stack([RED, GREEN, BLUE, GREEN, RED] * 3)
    async with serving(models, max_batch_size=4) as server:
        oip = OpenInference(server)
        outputs = await oip.infer("tiny", images=images)
        statistics = await oip.statistics("tiny")

    assert outputs["logits"].argmax(axis=1).tolist() == [0, 1, 2, 1, 0] * 3
    assert statistics.inference_count == 15
    assert {one.batch_size: one.compute_infer.count for one in statistics.batch_stats} == {4: 3, 3: 1}


async def test_both_apis_ride_in_one_batch(slow_models):
    async with serving(slow_models, max_batch_size=1) as server:
        oip = OpenInference(server)
        busy = await occupy(server, raw(RED))
        both = [
            asyncio.create_task(server.classify(raw(GREEN))),
            asyncio.create_task(oip.infer("tiny", images=BLUE[np.newaxis])),
        ]
        await until(lambda: server.in_flight() == 4)
        waiting = server.queued()
        classified, inferred = await asyncio.gather(*both)
        await asyncio.gather(*busy)

    assert waiting == 2
    assert max(probabilities(classified.results[0]).items(), key=lambda item: item[1])[0] == "green"
    assert inferred["logits"].argmax() == 2


@pytest.mark.parametrize("batch", [1, 4])
async def test_a_fixed_batch_of_an_image_model_is_filled_up(repository, batch):
    write_image_model(repository, classifier(batch=batch, layout="NHWC", dtype=TensorProto.UINT8))
    pixels = np.random.default_rng(3).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    async with serving(repository) as server:
        oip = OpenInference(server)
        outputs = await oip.infer("foreign", pixels=pixels)
        one = await oip.infer("foreign", pixels=pixels[3:4])
        statistics = await oip.statistics("foreign")

    free = classifier(layout="NHWC", dtype=TensorProto.UINT8).SerializeToString()
    session = onnxruntime.InferenceSession(free, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"pixels": pixels})
    np.testing.assert_allclose(outputs["scores"], expected, rtol=1e-4)
    np.testing.assert_allclose(one["scores"], expected[3:4], rtol=1e-4)
    sizes = {one.batch_size: one.compute_infer.count for one in statistics.batch_stats}
    assert sizes == ({1: 8} if batch == 1 else {4: 1, 3: 1, 1: 1})


async def test_a_batch_of_one_in_the_graph_is_served_one_by_one(repository):
    write_graph(repository, "one", identity("FP32", (1, 3)))
    async with serving(repository) as server:
        oip = OpenInference(server)
        outputs = await oip.infer("one", x=np.arange(9, dtype=np.float32).reshape(3, 3))
        statistics = await oip.statistics("one")

    assert outputs["y"].ravel().tolist() == list(range(9))
    assert {one.batch_size: one.compute_infer.count for one in statistics.batch_stats} == {1: 3}


async def test_a_first_dimension_that_is_no_batch_is_left_alone(repository):
    """L0_client_nobatch: the shapes of a request are those of the graph."""
    write_graph(repository, "whole", sum_and_difference((4, 4), "FP32"))
    a = np.arange(16, dtype=np.float32).reshape(4, 4)
    async with serving(repository) as server:
        oip = OpenInference(server)
        outputs = await oip.infer("whole", INPUT0=a, INPUT1=a)
        refused = await oip.refusal(request_of("whole", INPUT0=a[np.newaxis], INPUT1=a))
        config = (await oip.stub.ModelConfig(pb.ModelConfigRequest(name="whole"))).config
        metadata = await oip.stub.ModelMetadata(pb.ModelMetadataRequest(name="whole"))

    np.testing.assert_array_equal(outputs["OUTPUT0"], a + a)
    assert refused == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "input 'INPUT0': expected shape [4, 4], got [1, 4, 4]",
    )
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [4, 4])
    assert list(metadata.inputs[0].shape) == [4, 4]


async def test_scalars_have_no_batch(repository):
    """L0_scalar_io."""
    write_graph(repository, "scalar", identity("FP32", ()))
    async with serving(repository) as server:
        outputs = await OpenInference(server).infer("scalar", x=np.array(7, np.float32))

    assert outputs["y"].shape == ()
    assert outputs["y"] == 7


async def test_elements_of_a_vector_are_samples(repository):
    write_graph(repository, "vector", identity("INT64", ("batch",)))
    async with serving(repository) as server:
        outputs = await OpenInference(server).infer("vector", x=np.arange(5))

    assert outputs["y"].tolist() == [0, 1, 2, 3, 4]


async def test_an_exporters_reshape_to_one_is_found_out_and_served_one_by_one(repository):
    """The graph says that its batch is free, and is wrong."""
    model = graph(
        [helper.make_node("Reshape", ["x", "one"], ["row"]), helper.make_node("Identity", ["row"], ["y"])],
        {"x": ("FP32", ("batch", 3))},
        {"y": ("FP32", ("n", 3))},
        one=np.array([1, 3]),
    )
    write_graph(repository, "stubborn", model)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    async with serving(repository) as server:
        outputs = await OpenInference(server).infer("stubborn", x=x)

    np.testing.assert_array_equal(outputs["y"], x)


async def test_a_model_that_no_guessed_size_fits_is_served_cold(repository):
    model = graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        {"x": ("FP32", ("batch", "any"))},
        {"y": ("FP32", ("batch", 13, "rest"))},
        shape=np.array([0, 13, -1]),
    )
    write_graph(repository, "cold", model)
    x = np.arange(52, dtype=np.float32).reshape(2, 26)
    async with serving(repository) as server:
        oip = OpenInference(server)
        outputs = await oip.infer("cold", x=x)
        code, message = await oip.refusal(request_of("cold", x=x[:, :20]))
        again = await oip.infer("cold", x=x)

    np.testing.assert_array_equal(outputs["y"], x.reshape(2, 13, 2))
    # What the graph itself refuses looks like any failure of the engine; its reason is in the log.
    assert code is grpc.StatusCode.INTERNAL
    assert message == "the engine failed on this request; the server's log has the reason"
    np.testing.assert_array_equal(again["y"], outputs["y"])


async def test_samples_of_different_shapes_never_share_a_run(repository):
    """L0_infer_variable, and L0_batcher's rule for shapes."""
    write_graph(repository, "means", mean_of_any_size())
    small, large = np.full((2, 3, 4, 5), 2, np.float32), np.full((3, 3, 9, 2), 7, np.float32)
    async with serving(repository, max_batch_size=8, queue_delay_ms=10_000) as server:
        oip = OpenInference(server)
        first = asyncio.create_task(oip.infer("means", image=small))
        second = asyncio.create_task(oip.infer("means", image=large))
        third = asyncio.create_task(oip.infer("means", image=large))
        outputs = await asyncio.gather(first, second, third)

    assert [one["mean"].ravel().tolist() for one in outputs] == [[2] * 6, [7] * 9, [7] * 9]
    assert [set(one["company"].tolist()) for one in outputs] == [{2}, {6}, {6}]


# Layouts and dtypes of images


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["UINT8", "FP32", "FP16"])
async def test_the_server_makes_the_input_of_an_imported_image_model(repository, layout, dtype):
    types = {"UINT8": TensorProto.UINT8, "FP32": TensorProto.FLOAT, "FP16": TensorProto.FLOAT16}
    model = classifier(layout=layout, dtype=types[dtype], half=dtype == "FP16")
    write_image_model(repository, model, layout=layout, dtype=dtype)
    pixels = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    tensor = pixels if dtype == "UINT8" else (pixels / 255 - MEAN) / STD
    tensor = tensor.transpose(2, 0, 1) if layout == "NCHW" else tensor
    tensor = tensor.astype(DTYPES[dtype])[np.newaxis]
    async with serving(repository) as server:
        oip = OpenInference(server)
        of_tensor = (await oip.infer("foreign", pixels=tensor))["scores"]
        request = request_of("foreign", pixels=np.array([file(pixels)], dtype=object))
        of_file = arrays_of(await oip.stub.ModelInfer(request))["scores"]
        as_pixels = await server.classify(raw(pixels))
        as_file = await server.classify(encoded(file(pixels)))

    tolerance = 0.03 if dtype == "FP16" else 1e-4
    np.testing.assert_allclose(of_file, of_tensor, atol=tolerance, rtol=tolerance)
    expected = dict(zip("abcde", softmax(*map(float, of_tensor[0])), strict=True))
    for response in (as_pixels, as_file):
        assert probabilities(response.results[0]) == pytest.approx(expected, abs=tolerance)


MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def write_image_model(repository, model, *, layout="NHWC", dtype="UINT8"):
    """Write support.foreign's classifier with a manifest as import writes it."""
    encoded_model = model.SerializeToString()
    manifest = tiny_manifest("foreign", encoded_model, labels=tuple("abcde"))
    manifest.input.MergeFrom(
        manifest_pb2.Input(tensor="pixels", height=8, width=8, layout=layout, dtype=dtype)
    )
    manifest.preprocessing.MergeFrom(manifest_pb2.Preprocessing(resize_size=8, crop_height=8, crop_width=8))
    manifest.preprocessing.mean[:] = MEAN
    manifest.preprocessing.std[:] = STD
    manifest.output.tensor = "scores"
    manifest.weights.source = manifest_pb2.Weights.IMPORTED
    return write_model(repository, "foreign", model=model, manifest=manifest)


async def test_classify_takes_scores_in_trailing_dimensions_of_an_output_among_others(repository):
    model = tiny_model()
    model.graph.node[-1].output[0] = "flat"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 3, 1, 1]), "shape"))
    model.graph.node.append(helper.make_node("Reshape", ["flat", "shape"], ["logits"]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("means", TensorProto.FLOAT, ["batch", 3]))
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, 1, 1]))
    write_model(repository, model=model)
    async with serving(repository) as server:
        classified = await server.classify(raw(plain(120, 110, 100)), raw(BLUE))
        outputs = await OpenInference(server).infer("tiny", images=BLUE[np.newaxis])

    assert probabilities(classified.results[0])["red"] == pytest.approx(softmax(12, 11, 10)[0], abs=1e-6)
    assert outputs["logits"].shape == (1, 3, 1, 1)
    np.testing.assert_allclose(outputs["means"], [[20, 10, 200]])


# Classification


async def test_classification_gives_the_best_classes_as_text(models):
    """L0_parameters/class_count_test and L0_infer's test_class_*."""
    request = request_of("tiny", images=np.stack([RED, BLUE]))
    request.outputs.add(name="logits").parameters["classification"].int64_param = 2
    async with serving(models) as server:
        response = await OpenInference(server).stub.ModelInfer(request)

    assert response.outputs[0].datatype == "BYTES"
    assert arrays_of(response)["logits"].tolist() == [
        ["20.000000:0:red", "2.000000:1:green"],
        ["20.000000:2:blue", "2.000000:0:red"],
    ]


async def test_more_classes_than_there_are_give_all_of_them(models):
    request = request_of("tiny", images=RED[np.newaxis])
    request.outputs.add(name="logits").parameters["classification"].int64_param = 50
    async with serving(models) as server:
        outputs = arrays_of(await OpenInference(server).stub.ModelInfer(request))

    assert outputs["logits"].shape == (1, 3)


async def test_without_labels_classification_gives_indexes(repository):
    write_graph(repository, "identity", identity("INT32", (3,)))
    request = request_of("identity", x=np.array([5, 9, 7], np.int32))
    request.outputs.add(name="y").parameters["classification"].uint64_param = 1
    async with serving(repository) as server:
        outputs = arrays_of(await OpenInference(server).stub.ModelInfer(request))

    assert outputs["y"].tolist() == ["9:1"]


# What is refused


async def test_wrong_requests_are_told_what_was_expected(models):
    """L0_input_validation, L0_output_name: the codec's messages, through the wire. Nothing is lost by it."""
    right = request_of("tiny", images=RED[np.newaxis])

    def wrong(change):
        request = pb.ModelInferRequest.FromString(right.SerializeToString())
        change(request)
        return request

    def cut(request):
        request.raw_input_contents[0] = b"x" * 40

    def in_sequence(request):
        request.parameters["sequence_id"].int64_param = 3

    def empty(request):
        request.inputs[0].shape[0] = 0
        request.raw_input_contents[0] = b""

    cases = {
        "input 'images' of shape [1, 4, 4, 3]: expected 48 bytes, got 40": cut,
        "input 'images': expected a batch of 1 to 256, got 0": empty,
        "inputs: expected 'images', 'images' is missing": lambda request: request.ClearField("inputs"),
        "inputs: 'images' is given twice": lambda request: request.inputs.append(request.inputs[0]),
        "outputs: 'scores' is not an output of the model; it has 'logits'": lambda request: (
            request.outputs.add(name="scores")
        ),
        "parameters[sequence_id]: expected none, models here keep no state between requests": in_sequence,
        "name: expected the name of a model, got none": lambda request: request.ClearField("model_name"),
    }
    async with serving(models) as server:
        oip = OpenInference(server)
        for message, change in cases.items():
            assert await oip.refusal(wrong(change)) == (grpc.StatusCode.INVALID_ARGUMENT, message)
        outputs = await oip.infer("tiny", images=RED[np.newaxis])
        outcomes = server.outcomes()

    assert outputs["logits"].argmax() == 0
    assert outcomes == {"ok": 1, "invalid": len(cases) - 1}  # the nameless one is of no model


async def test_an_unknown_model_or_version_is_not_found(models):
    async with serving(models) as server:
        oip = OpenInference(server)
        model = await oip.refusal(request_of("nobody", images=RED[np.newaxis]))
        request = request_of("tiny", images=RED[np.newaxis])
        request.model_version = "9"
        version = await oip.refusal(request)
        codes = []
        for call in (
            oip.stub.ModelMetadata(pb.ModelMetadataRequest(name="nobody")),
            oip.stub.ModelConfig(pb.ModelConfigRequest(name="nobody")),
            oip.stub.ModelStatistics(pb.ModelStatisticsRequest(name="nobody")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            codes.append(refused.value.code())

    assert model == (
        grpc.StatusCode.NOT_FOUND,
        "model: 'nobody' is not in the repository; it has tiny",
    )
    assert version[0] is grpc.StatusCode.NOT_FOUND
    assert codes == [grpc.StatusCode.NOT_FOUND] * 3


@pytest.mark.parametrize(
    "method",
    [
        "SystemSharedMemoryStatus",
        "SystemSharedMemoryRegister",
        "SystemSharedMemoryUnregister",
        "CudaSharedMemoryStatus",
        "CudaSharedMemoryRegister",
        "CudaSharedMemoryUnregister",
        "TraceSetting",
        "LogSettings",
    ],
)
async def test_what_is_not_had_says_so_by_name(models, method):
    async with serving(models) as server:
        request = getattr(pb, f"{method}Request")()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await getattr(OpenInference(server).stub, method)(request)

    assert (refused.value.code(), refused.value.details()) == (
        grpc.StatusCode.UNIMPLEMENTED,
        f"{method} is not implemented by this server",
    )


async def test_a_model_with_a_datatype_that_numpy_lacks_says_so(repository):
    write_graph(repository, "half", identity("BF16"))
    write_graph(repository, "fine", identity())
    async with serving(repository) as server:
        rows = (await OpenInference(server).stub.RepositoryIndex(pb.RepositoryIndexRequest())).models

    states = {row.name: (row.state, row.reason) for row in rows}
    assert states["fine"] == ("READY", "")
    assert states["half"][0] == "UNAVAILABLE"
    assert "the input 'x' is a tensor(bfloat16), which cannot be served" in states["half"][1]


async def test_an_image_model_does_not_take_images_as_text_when_it_is_none(repository):
    write_graph(repository, "identity", identity("UINT8"))
    async with serving(repository) as server:
        refused = await OpenInference(server).refusal(
            request_of("identity", x=np.array([b"jpeg"], dtype=object))
        )

    assert refused == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "input 'x': expected datatype UINT8, got 'BYTES'",
    )


# Without a manifest


async def test_a_folder_without_a_manifest_is_served_over_open_inference_only(repository):
    write_graph(repository, "simple", sum_and_difference())
    a = np.ones((1, 16), np.int32)
    async with serving(repository) as server:
        oip = OpenInference(server)
        outputs = await oip.infer("simple", INPUT0=a, INPUT1=a)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await server.classify(raw(RED))
        (listed,) = (await server.stub.ListModels(cls.ListModelsRequest())).models
        health = await server.health_of("simple")

    np.testing.assert_array_equal(outputs["OUTPUT0"], a + a)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == (
        "model: simple takes tensors, not images: no manifest says how its input is made of them; it is "
        "served over Open Inference (inference.GRPCInferenceService)"
    )
    assert (listed.name, listed.state, listed.weights) == ("simple", cls.READY, "imported")
    assert (listed.input_height, list(listed.labels)) == (0, [])
    assert health == "SERVING"


async def test_external_weights_are_checked_against_the_manifest(repository):
    model = identity("FP32")
    folder = write_graph(repository, "external", model)
    encoded_model = model.SerializeToString()
    manifest = tiny_manifest("external", encoded_model)
    for part in ("input", "preprocessing", "output"):
        manifest.ClearField(part)
    manifest.external_files.add(path="weights.bin", bytes=3, sha256="ab" * 32)
    (folder / "manifest.json").write_text(json_format.MessageToJson(manifest))
    (folder / "weights.bin").write_bytes(b"abc")
    write_graph(repository, "fine", identity())
    async with serving(repository) as server:
        rows = (await OpenInference(server).stub.RepositoryIndex(pb.RepositoryIndexRequest())).models

    reason = {row.name: row.reason for row in rows}["external"]
    assert "weights.bin is not the file that its manifest describes" in reason


# Deadlines


async def test_the_calls_deadline_and_the_requests_own_timeout_both_count(slow_models):
    """L0_client_timeout, and L0_batcher's queue_timeout_test: told at once, while the engine is busy."""
    async with serving(slow_models, max_batch_size=1) as server:
        oip = OpenInference(server)
        busy = await occupy(server, raw(RED))
        request = request_of("tiny", images=RED[np.newaxis])
        request.parameters["timeout"].int64_param = 1000
        started = time.monotonic()
        code, _ = await oip.refusal(request)
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await oip.stub.ModelInfer(request_of("tiny", images=RED[np.newaxis]), timeout=0.001)
        told_after = time.monotonic() - started
        still_busy = not all(task.done() for task in busy)
        await asyncio.gather(*busy)
        outputs = await oip.infer("tiny", images=RED[np.newaxis])

    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED  # predicted to be late, so refused at the door
    assert late.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert still_busy, f"told after {told_after:.3f} s"
    assert outputs["logits"].argmax() == 0


async def test_a_full_queue_refuses_with_a_pushback(slow_models):
    async with serving(slow_models, max_batch_size=1, queue_limit=1) as server:
        oip = OpenInference(server)
        busy = await occupy(server, raw(RED))
        waiting = asyncio.create_task(oip.infer("tiny", images=RED[np.newaxis]))
        await until(lambda: server.queued() == 1)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await oip.stub.ModelInfer(request_of("tiny", images=RED[np.newaxis]), timeout=PATIENCE_SECONDS)
        await asyncio.gather(waiting, *busy)

    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert pushback(refused.value) > 0


async def test_a_cancelled_request_leaves_the_queue(slow_models):
    """L0_request_cancellation."""
    async with serving(slow_models, max_batch_size=1) as server:
        oip = OpenInference(server)
        busy = await occupy(server, raw(RED))
        call = oip.stub.ModelInfer(request_of("tiny", images=RED[np.newaxis]), timeout=PATIENCE_SECONDS)
        waiting = asyncio.ensure_future(call)
        await until(lambda: server.queued() == 1)
        call.cancel()
        await until(lambda: server.queued() == 0)
        await asyncio.gather(*busy)
        await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: server.outcomes() == {"ok": 2, "cancelled": 1})


# Streams


async def stream(oip, *requests):
    """Return the responses to a stream of requests."""

    async def sent():
        for request in requests:
            yield request

    return [response async for response in oip.stub.ModelStreamInfer(sent(), timeout=PATIENCE_SECONDS)]


async def test_a_stream_answers_in_order_and_survives_errors(models):
    def request(number, images):
        one = request_of("tiny", images=images)
        one.id = str(number)
        return one

    requests = [
        request(0, RED[np.newaxis]),
        request(1, np.zeros((1, 2, 2, 3), np.uint8)),
        request(2, np.stack([GREEN, BLUE])),
    ]
    async with serving(models) as server:
        responses = await stream(OpenInference(server), *requests * 30)
        outcomes = server.outcomes()

    assert [response.infer_response.id for response in responses] == ["0", "1", "2"] * 30
    for good, bad, other in zip(responses[::3], responses[1::3], responses[2::3], strict=True):
        assert arrays_of(good.infer_response)["logits"].argmax(axis=1).tolist() == [0]
        assert bad.error_message == "input 'images': expected shape [-1, 4, 4, 3], got [1, 2, 2, 3]"
        assert not bad.infer_response.outputs
        assert arrays_of(other.infer_response)["logits"].argmax(axis=1).tolist() == [1, 2]
    assert outcomes == {"ok": 60, "invalid": 30}


async def test_the_final_response_is_marked_when_that_is_asked_for(models):
    asking, silent = (request_of("tiny", images=RED[np.newaxis]) for _ in range(2))
    asking.parameters["triton_enable_empty_final_response"].bool_param = True
    async with serving(models) as server:
        asked, other = await stream(OpenInference(server), asking, silent)

    assert asked.infer_response.parameters["triton_final_response"].bool_param
    assert not other.infer_response.parameters


async def test_a_stream_that_is_given_up_leaves_nothing_behind(slow_models):
    """L0_grpc_state_cleanup."""
    async with serving(slow_models, max_batch_size=1) as server:
        oip = OpenInference(server)

        async def requests():
            for _ in range(8):
                yield request_of("tiny", images=RED[np.newaxis])
            await asyncio.Event().wait()

        call = oip.stub.ModelStreamInfer(requests(), timeout=PATIENCE_SECONDS)
        first = await call.read()
        await until(lambda: server.in_flight() > 1)
        call.cancel()
        await until(lambda: server.in_flight() == 0 and server.queued() == 0)
        health = await server.health_of("tiny")

    assert arrays_of(first.infer_response)["logits"].argmax() == 0
    assert health == "SERVING"


# The server and its models


async def test_the_server_says_what_it_is(models):
    """L0_server_status."""
    async with serving(models) as server:
        oip = OpenInference(server)
        live = await oip.stub.ServerLive(pb.ServerLiveRequest())
        ready = await oip.stub.ServerReady(pb.ServerReadyRequest())
        metadata = await oip.stub.ServerMetadata(pb.ServerMetadataRequest())
        health = await server.health_of("inference.GRPCInferenceService")

    assert live.live
    assert ready.ready
    assert metadata.name == "vistazo"
    assert metadata.version
    assert set(metadata.extensions) >= {"classification", "statistics", "model_repository"}
    assert health == "SERVING"


async def test_a_server_that_loads_is_live_and_not_ready(slow_models):
    async with serving(slow_models, wait=False) as server:
        oip = OpenInference(server)
        live = await oip.stub.ServerLive(pb.ServerLiveRequest())
        ready = await oip.stub.ServerReady(pb.ServerReadyRequest())
        model = await oip.stub.ModelReady(pb.ModelReadyRequest(name="tiny"))
        await server.server.loading
        later = await oip.stub.ServerReady(pb.ServerReadyRequest())

    assert (live.live, ready.ready, model.ready, later.ready) == (True, False, False, True)


async def test_a_model_is_ready_when_it_is_there(models):
    async with serving(models) as server:
        stub = OpenInference(server).stub

        async def ready(name, version=""):
            return (await stub.ModelReady(pb.ModelReadyRequest(name=name, version=version))).ready

        answers = [await ready("tiny"), await ready("tiny", "1"), await ready("tiny", "2"), await ready("x")]

    assert answers == [True, True, False, False]


async def test_the_metadata_and_the_config_describe_the_graph(models):
    async with serving(models, max_batch_size=8) as server:
        stub = OpenInference(server).stub
        metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
        config = (await stub.ModelConfig(pb.ModelConfigRequest(name="tiny"))).config

    assert (metadata.name, list(metadata.versions), metadata.platform) == ("tiny", ["1"], "onnxruntime_onnx")
    (given,), (wanted,) = metadata.inputs, metadata.outputs
    assert (given.name, given.datatype, list(given.shape)) == ("images", "UINT8", [-1, 4, 4, 3])
    assert (wanted.name, wanted.datatype, list(wanted.shape)) == ("logits", "FP32", [-1, 3])
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "onnxruntime", 8)
    assert (config.input[0].data_type, list(config.input[0].dims)) == (pb.TYPE_UINT8, [4, 4, 3])
    assert (config.output[0].data_type, list(config.output[0].dims)) == (pb.TYPE_FP32, [3])
    assert config.HasField("dynamic_batching")
    assert not config.model_transaction_policy.decoupled
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_CPU


async def test_statistics_count_both_apis_as_triton_counts(models):
    """L0_response_statistics: samples, runs, and where the time went."""
    before = time.time()
    async with serving(models, max_batch_size=8) as server:
        oip = OpenInference(server)
        untouched = await oip.statistics("tiny")
        await oip.infer("tiny", images=np.stack([RED] * 3))
        await server.classify(raw(GREEN), raw(BLUE))
        await oip.refusal(request_of("tiny", images=np.zeros((1, 1), np.uint8)))
        statistics = await oip.statistics("tiny", "1")
        everything = await oip.stub.ModelStatistics(pb.ModelStatisticsRequest())

    assert (untouched.inference_count, untouched.execution_count) == (0, 0)
    assert (statistics.name, statistics.version) == ("tiny", "1")
    assert (statistics.inference_count, statistics.execution_count) == (5, 2)
    assert before * 1000 - 1 <= statistics.last_inference <= time.time() * 1000 + 1
    stats = statistics.inference_stats
    assert (stats.success.count, stats.fail.count) == (2, 1)
    stages = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
    assert [stage.count for stage in stages] == [2] * 4
    assert 0 < sum(stage.ns for stage in stages) <= stats.success.ns
    assert (stats.cache_hit.count, stats.cache_miss.count) == (0, 0)
    assert {one.batch_size: one.compute_infer.count for one in statistics.batch_stats} == {2: 1, 3: 1}
    assert all(one.compute_infer.ns > 0 for one in statistics.batch_stats)
    assert [one.name for one in everything.model_stats] == ["tiny"]


async def test_requests_of_both_apis_are_in_the_same_metrics(models):
    async with serving(models) as server:
        await OpenInference(server).infer("tiny", images=np.stack([RED] * 3))
        await server.classify(raw(GREEN))
        labelled = {"model": "tiny", "version": "1"}
        samples = server.sample("vistazo_inference_samples_total", **labelled)
        timed = server.sample("vistazo_inference_request_duration_seconds_count", **labelled)
        handled = server.sample(
            "grpc_server_handled_total",
            grpc_type="unary",
            grpc_service="inference.GRPCInferenceService",
            grpc_method="ModelInfer",
            grpc_code="OK",
        )
        outcomes = server.outcomes()

    assert (samples, timed, handled) == (4, 2, 1)
    assert outcomes == {"ok": 2}


async def test_the_index_lists_what_is_ready_and_what_is_not(models):
    (models / "broken" / "1").mkdir(parents=True)
    (models / "broken" / "1" / "model.onnx").write_bytes(b"none")
    async with serving(models) as server:
        stub = OpenInference(server).stub
        rows = (await stub.RepositoryIndex(pb.RepositoryIndexRequest())).models
        ready = (await stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))).models
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="other"))

    assert [(row.name, row.version, row.state) for row in rows] == [
        ("broken", "1", "UNAVAILABLE"),
        ("tiny", "1", "READY"),
    ]
    assert "is not a model that ONNX Runtime can run" in rows[0].reason
    assert [row.name for row in ready] == ["tiny"]
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_caller_may_load_and_unload_where_that_is_explicit(models):
    async with serving(models, model_control="explicit") as server:
        oip = OpenInference(server)
        await oip.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="tiny"))
        outputs = await oip.infer("tiny", images=RED[np.newaxis])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await oip.stub.RepositoryModelLoad(
                pb.RepositoryModelLoadRequest(
                    model_name="tiny", parameters={"config": pb.ModelRepositoryParameter(string_param="{}")}
                )
            )
        request = pb.RepositoryModelUnloadRequest(model_name="tiny")
        request.parameters["unload_dependents"].bool_param = True
        await oip.stub.RepositoryModelUnload(request)
        (row,) = (await oip.stub.RepositoryIndex(pb.RepositoryIndexRequest())).models
        ready = await oip.stub.ModelReady(pb.ModelReadyRequest(name="tiny"))

    assert outputs["logits"].argmax() == 0
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert row.state == "UNAVAILABLE"
    assert not ready.ready


async def test_loading_is_refused_where_callers_may_not(models):
    async with serving(models) as server:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await OpenInference(server).stub.RepositoryModelLoad(
                pb.RepositoryModelLoadRequest(model_name="tiny")
            )

    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "--model-control explicit" in refused.value.details()


@pytest.mark.blocks_loop("its callers make and read messages of 12 MB")
async def test_a_large_payload_is_answered_or_refused_and_a_small_one_after_it_works(repository):
    """L0_large_payload, with our own limit."""
    write_graph(repository, "identity", identity("FP32", ("batch", "any")))
    async with serving(repository, max_message_mb=8) as server:
        oip = OpenInference(server)
        large = np.ones((1, 1_500_000), np.float32)
        outputs = await oip.infer("identity", x=large)
        code, _ = await oip.refusal(request_of("identity", x=np.ones((1, 3_000_000), np.float32)))
        small = await oip.infer("identity", x=np.ones((1, 2), np.float32))

    assert outputs["y"].shape == large.shape
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert small["y"].tolist() == [[1, 1]]
