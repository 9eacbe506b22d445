"""Whatever bytes a stranger sends: no crash, no INTERNAL, and the next request is answered.

A real server in a process of its own, so that a crash shows as one. 2,000 cases by default; `make fuzz` runs
more (FUZZ_CASES).
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from support.graphs import identity, mean_of_any_size, sum_and_difference, write_graph
from support.images import file
from support.process import ServerProcess, server_process
from support.tiny import plain, write_model
from vistazo_proto import classification_pb2 as cls
from vistazo_proto import open_inference_pb2 as pb
from vistazo_server.engine.tensors import DTYPES

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("FUZZ_CASES", "2000"))

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
CLASSIFY = "/vistazo.v1.ClassificationService/Classify"
STREAM_CLASSIFY = "/vistazo.v1.ClassificationService/ClassifyStream"

ANSWERS = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # a timeout that cannot be met
    grpc.StatusCode.DEADLINE_EXCEEDED,
}

# Failing cases are reported as they are: shrinking one takes thousands of calls.
fuzzed = settings(
    max_examples=CASES // 5,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    database=None,
)


@dataclass
class Victim:
    """The server, and a channel that sends bytes as they are."""

    process: ServerProcess
    channel: grpc.Channel
    calls: int = 0
    last: object = None

    def send(self, method: str, request: bytes) -> bytes:
        """Return the response; empty when the request was refused as a bad request is."""
        self.calls += 1
        self.last = (method, request)
        try:
            response: bytes = self.channel.unary_unary(method)(request, timeout=30)
        except grpc.RpcError as error:
            self._check(error)
            return b""
        return response

    def stream(self, method: str, *requests: bytes) -> list[bytes]:
        """Return the responses to a stream, as far as it came."""
        self.calls += 1
        self.last = (method, requests)
        responses: list[bytes] = []
        with contextlib.suppress(grpc.RpcError):
            call = self.channel.stream_stream(method)(iter(requests), timeout=30)
            try:
                responses.extend(call)
            except grpc.RpcError as error:
                self._check(error)
        return responses

    def _check(self, error: grpc.RpcError) -> None:
        assert error.code() in ANSWERS, f"{error.code()}: {error.details()}"
        assert "\n" not in error.details()
        # In grpc's own words it is the caller's patience that ended, and the server that hung.
        assert error.details() != "Deadline Exceeded", self.last


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """A server of models of many kinds, which must be as well at the end as at the start."""
    models = tmp_path_factory.mktemp("fuzz") / "models"
    write_model(models)
    write_graph(models, "simple", sum_and_difference())
    write_graph(models, "text", identity("BYTES", ("batch", 2)))
    write_graph(models, "vector", identity("FP16", ("batch",)))
    write_graph(models, "whole", sum_and_difference((4, 4), "FP64"))
    write_graph(models, "means", mean_of_any_size())
    with (
        server_process(models) as process,
        grpc.insecure_channel(process.address, options=[("grpc.enable_http_proxy", 0)]) as channel,
    ):
        victim = Victim(process, channel)
        yield victim
        good = cls.ClassifyRequest(model="tiny", images=[cls.Image(encoded=file(plain(200, 10, 20)))])
        answer = cls.ClassifyResponse.FromString(victim.send(CLASSIFY, good.SerializeToString()))
        assert answer.results[0].predictions.predictions[0].label == "red"
        print(f"{victim.calls} calls, none crashed")  # noqa: T201


@pytest.fixture(autouse=True)
def _nothing_crashed(victim: Victim) -> Iterator[None]:
    # After each test, since only so many lines of the log are kept.
    yield
    assert victim.process.process.poll() is None
    crashes = [line for line in victim.process.log if line["level"] in ("error", "critical")]
    assert not crashes, crashes[:3]


# Requests that are well-formed messages


NAMES = st.sampled_from(
    [
        *("tiny", "simple", "text", "vector", "whole", "means"),
        *("images", "logits", "INPUT0", "INPUT1", "OUTPUT0", "x", "y", "image", "mean", "", "é\n"),
    ]
) | st.text(max_size=8)
DATATYPES = st.sampled_from([*DTYPES, "BF16", "", "fp32", "TYPE_FP32"])
SIZES = st.integers(0, 6) | st.sampled_from([-1, -(2**63), 2**63 - 1, 2**31, 10**6, 1 << 40])
SMALL = st.integers(-(2**31), 2**31 - 1)


@st.composite
def parameters(draw):
    """Return one parameter, of any type or none."""
    kind = draw(st.sampled_from(["bool", "int64", "string", "double", "uint64", "none"]))
    value = {
        "bool": {"bool_param": draw(st.booleans())},
        "int64": {"int64_param": draw(st.integers(-(2**63), 2**63 - 1))},
        "string": {"string_param": draw(st.text(max_size=5))},
        "double": {"double_param": draw(st.floats(width=64))},
        "uint64": {"uint64_param": draw(st.integers(0, 2**64 - 1))},
        "none": {},
    }[kind]
    return pb.InferParameter(**value)


PARAMETERS = st.dictionaries(
    st.sampled_from(
        [
            *("classification", "sequence_id", "sequence_start", "priority", "timeout"),
            *("shared_memory_region", "triton_enable_empty_final_response", "mine"),
        ]
    ),
    parameters(),
    max_size=2,
)

CONTENTS = st.builds(
    pb.InferTensorContents,
    bool_contents=st.lists(st.booleans(), max_size=4),
    int_contents=st.lists(SMALL, max_size=4),
    int64_contents=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=2),
    uint_contents=st.lists(st.integers(0, 2**32 - 1), max_size=2),
    fp32_contents=st.lists(st.floats(width=32), max_size=4),
    fp64_contents=st.lists(st.floats(), max_size=2),
    bytes_contents=st.lists(st.binary(max_size=4), max_size=2),
)


@st.composite
def infer_requests(draw):
    """Return a message that has every field and makes little sense."""
    inputs = [
        pb.ModelInferRequest.InferInputTensor(
            name=draw(NAMES),
            datatype=draw(DATATYPES),
            shape=draw(st.lists(SIZES, max_size=5)),
            parameters=draw(PARAMETERS),
            contents=draw(st.none() | CONTENTS),
        )
        for _ in range(draw(st.integers(0, 3)))
    ]
    return pb.ModelInferRequest(
        model_name=draw(NAMES),
        model_version=draw(st.sampled_from(["", "1", "1", "2", "-1", "x"])),
        id=draw(st.text(max_size=5)),
        parameters=draw(PARAMETERS),
        inputs=inputs,
        outputs=[
            pb.ModelInferRequest.InferRequestedOutputTensor(name=draw(NAMES), parameters=draw(PARAMETERS))
            for _ in range(draw(st.integers(0, 2)))
        ],
        raw_input_contents=draw(st.lists(st.binary(max_size=64), max_size=3)),
    )


SHAPES = {
    "tiny": {"images": ("UINT8", (4, 4, 3))},
    "simple": {"INPUT0": ("INT32", (16,)), "INPUT1": ("INT32", (16,))},
    "text": {"x": ("BYTES", (2,))},
    "vector": {"x": ("FP16", ())},
    "means": {"image": ("FP32", (3, 5, 2))},
}


@st.composite
def nearly_right_requests(draw):
    """Return a request that is right but for one thing, or right."""
    model = draw(st.sampled_from(sorted(SHAPES)))
    batch = draw(st.integers(1, 5))
    request = pb.ModelInferRequest(model_name=model, parameters=draw(PARAMETERS))
    for name, (datatype, dims) in SHAPES[model].items():
        shape = (batch, *dims)
        size = int(np.prod(shape)) * (1 if datatype == "BYTES" else DTYPES[datatype].itemsize)
        data = draw(st.binary(min_size=1, max_size=1)) * size
        if datatype == "BYTES":
            data = b"\2\0\0\0" + b"ab" if draw(st.booleans()) else data
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(data)
    wrong = draw(st.sampled_from(["nothing", "shape", "datatype", "data", "name", "output", "twice"]))
    first = request.inputs[0]
    if wrong == "shape":
        first.shape[:] = draw(st.lists(SIZES, max_size=5))
    elif wrong == "datatype":
        first.datatype = draw(DATATYPES)
    elif wrong == "data":
        request.raw_input_contents[0] = draw(st.binary(max_size=100))
    elif wrong == "name":
        first.name = draw(NAMES)
    elif wrong == "output":
        request.outputs.add(name=draw(NAMES), parameters=draw(PARAMETERS))
    elif wrong == "twice":
        request.inputs.append(first)
    return request


IMAGE_FILE = file(plain(120, 110, 100, height=9, width=7))
IMAGES = st.one_of(
    st.builds(cls.Image, encoded=st.binary(max_size=40)),
    st.builds(cls.Image, encoded=st.integers(0, len(IMAGE_FILE)).map(lambda end: IMAGE_FILE[:end])),
    st.builds(
        cls.Image,
        raw=st.builds(
            cls.RawPixels,
            data=st.binary(max_size=60),
            height=st.integers(0, 5) | st.just(2**32 - 1),
            width=st.integers(0, 5) | st.just(2**32 - 1),
            channels=st.integers(0, 5) | st.just(2**32 - 1),
        ),
    ),
    st.just(cls.Image()),
)
CLASSIFY_REQUESTS = st.builds(
    cls.ClassifyRequest,
    model=NAMES,
    version=st.sampled_from(["", "1", "2", "-1", "é"]),
    images=st.lists(IMAGES, max_size=3),
    top_k=st.none() | st.integers(0, 5) | st.just(2**32 - 1),
    min_probability=st.none() | st.sampled_from([0.0, 0.5, 1.0]) | st.floats(width=32),
)


@pytest.mark.timeout(1800)
@fuzzed
@given(infer_requests() | nearly_right_requests())
def test_any_infer_request_is_answered_or_refused(victim, request):
    victim.send(INFER, request.SerializeToString())


@pytest.mark.timeout(1800)
@fuzzed
@given(CLASSIFY_REQUESTS)
def test_any_classify_request_is_answered_or_refused(victim, request):
    victim.send(CLASSIFY, request.SerializeToString())


# Bytes that were a message


def valid_messages() -> dict[str, list[bytes]]:
    """Return serialised requests that are right, by the method that they are for."""
    tensor = pb.ModelInferRequest(model_name="tiny", raw_input_contents=[bytes(48)])
    tensor.inputs.add(name="images", datatype="UINT8", shape=[1, 4, 4, 3])
    tensor.outputs.add(name="logits").parameters["classification"].int64_param = 2
    image = pb.ModelInferRequest(model_name="tiny", id="7")
    image.inputs.add(name="images", datatype="BYTES", shape=[1]).contents.bytes_contents.append(IMAGE_FILE)
    pixels = cls.RawPixels(data=bytes(48), height=4, width=4, channels=3)
    classify = cls.ClassifyRequest(
        model="tiny",
        images=[cls.Image(encoded=IMAGE_FILE), cls.Image(raw=pixels)],
        top_k=2,
        min_probability=0.25,
    )
    infers = [tensor.SerializeToString(), image.SerializeToString()]
    streamed = cls.ClassifyStreamRequest(id="7", request=classify)
    return {
        INFER: infers,
        STREAM_INFER: infers,
        CLASSIFY: [classify.SerializeToString()],
        STREAM_CLASSIFY: [streamed.SerializeToString()],
    }


VALID = valid_messages()


@st.composite
def mutated(draw, messages: list[bytes]):
    """Return the bytes of a valid request with a few of them changed, cut out, put in or doubled."""
    data = bytearray(draw(st.sampled_from(messages)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        change = draw(st.sampled_from(["flip", "set", "cut", "insert", "double", "end"]))
        if change == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "set" and data:
            data[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif change == "cut":
            del data[at : at + draw(st.integers(1, 8))]
        elif change == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif change == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 32))]
        else:
            del data[at:]
    return bytes(data)


@pytest.mark.timeout(1800)
@fuzzed
@given(mutated(VALID[INFER]))
def test_mutated_bytes_of_an_infer_request_are_answered_or_refused(victim, data):
    victim.send(INFER, data)


@pytest.mark.timeout(1800)
@fuzzed
@given(mutated(VALID[CLASSIFY]))
def test_mutated_bytes_of_a_classify_request_are_answered_or_refused(victim, data):
    victim.send(CLASSIFY, data)


@pytest.mark.timeout(1800)
@fuzzed
@given(st.sampled_from([STREAM_INFER, STREAM_CLASSIFY]), st.data())
def test_mutated_bytes_in_a_stream_end_it_at_worst(victim, method, data):
    good = VALID[method][0]
    responses = victim.stream(method, good, data.draw(mutated(VALID[method])), good)

    if method == STREAM_CLASSIFY:
        codes = {cls.ClassifyStreamResponse.FromString(response).error.code for response in responses}
        assert grpc.StatusCode.INTERNAL.value[0] not in codes
    else:
        told = [pb.ModelStreamInferResponse.FromString(response).error_message for response in responses]
        assert not any("the engine failed" in message for message in told)
