"""A real gRPC server on port 0 whose answers a test can read back and script."""

import math
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from support.aio_client import BlockingAsyncClient
from support.certificates import Files
from support.shades import model
from vistazo_client import Client
from vistazo_proto import classification_pb2 as pb
from vistazo_proto.classification_pb2_grpc import (
    ClassificationServiceServicer,
    add_ClassificationServiceServicer_to_server,
)

Script = Callable[[pb.ClassifyRequest, grpc.ServicerContext], None]
StreamScript = Callable[[pb.ClassifyStreamRequest, grpc.ServicerContext], pb.ClassifyStreamResponse | None]

RESNET = pb.Model(
    name="resnet18",
    version="1",
    state=pb.READY,
    input_height=224,
    input_width=224,
    input_channels=3,
    labels=["cat", "dog"],
    weights="pretrained",
    precision="fp32",
    max_batch_size=8,
    device="cpu",
    latencies=[pb.BatchLatency(batch_size=1, seconds=0.02), pb.BatchLatency(batch_size=8, seconds=0.1)],
    scores=pb.INDEPENDENT_LOGITS,
)
LENET = pb.Model(name="lenet", version="2", state=pb.READY, weights="untrained", labels=["0", "1"])
BROKEN = pb.Model(name="vgg16", version="1", state=pb.FAILED, reason="checksum does not match")
MODELS = {model.name: model for model in (LENET, RESNET, BROKEN)}


@dataclass
class FakeService(ClassificationServiceServicer):
    """The label of an image's best prediction is the image's own content, so answers can be told apart.

    An image that starts with `bad` is refused as the contract says: alone among others, and with its
    whole request when it is the only one. A model that is not in `models` is not found. `script` runs
    before each answer and may abort or wait.
    """

    script: Script | None = None
    stream_script: StreamScript | None = None
    """Called with each request of a stream; what it returns is sent in place of the answer."""
    models: dict[str, pb.Model] = field(default_factory=MODELS.copy)
    replace_stream: Callable[..., Iterator[pb.ClassifyStreamResponse]] | None = None
    """Answers whole streams in place of this service."""
    model_script: Callable[[grpc.ServicerContext], None] | None = None
    """Runs before each GetModel."""
    asked: list[str] = field(default_factory=list)
    """The models that GetModel was asked for; empty: ListModels was."""
    requests: list[pb.ClassifyRequest] = field(default_factory=list)
    stream_requests: list[pb.ClassifyStreamRequest] = field(default_factory=list)
    streams: int = 0
    ended_streams: int = 0
    metadata: list[dict[str, str]] = field(default_factory=list)
    """Of each Classify and each stream."""
    answered_images: int = 0
    running: int = 0
    most_running: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def Classify(self, request, context):  # noqa: N802  the name in the .proto
        with self._lock:
            self.requests.append(request)
            self.metadata.append(dict(context.invocation_metadata()))
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            return self._classify(request, context)
        finally:
            with self._lock:
                self.running -= 1
                self.answered_images += len(request.images)

    def _classify(self, request, context):
        if self.script is not None:
            self.script(request, context)
        model = self.models.get(request.model or "resnet18")
        if model is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.model!r}")
        if len(request.images) == 1 and _is_bad(request.images[0]):
            context.set_trailing_metadata((("vistazo-error-reason", "invalid-image"),))
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "images[0]: expected an image, got something else"
            )
        return pb.ClassifyResponse(
            model=model.name,
            version=request.version or model.version,
            results=[_result(number, image, request) for number, image in enumerate(request.images)],
            batch_size=len(request.images),
            timing=pb.Timing(queue_seconds=0.25, preprocess_seconds=0.5, compute_seconds=1.0),
        )

    def ListModels(self, request, context):  # noqa: N802  the name in the .proto
        self.asked.append("")
        return pb.ListModelsResponse(models=[self.models[name] for name in sorted(self.models)])

    def GetModel(self, request, context):  # noqa: N802  the name in the .proto
        self.asked.append(request.name)
        if self.model_script is not None:
            self.model_script(context)
        if request.name not in self.models:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.name!r}")
        return self.models[request.name]

    def ClassifyStream(self, request_iterator, context):  # noqa: N802  the name in the .proto
        with self._lock:
            self.streams += 1
            self.metadata.append(dict(context.invocation_metadata()))
        if self.replace_stream is not None:
            yield from self.replace_stream(request_iterator, context)
            return
        for request in request_iterator:
            self.stream_requests.append(request)
            scripted = self.stream_script(request, context) if self.stream_script is not None else None
            yield scripted or self._stream_answer(request)
        with self._lock:
            self.ended_streams += 1

    def _stream_answer(self, request):
        (image,) = request.request.images
        if _is_bad(image):
            error = pb.ImageError(
                code=3, message="images[0]: expected an image, got something else", reason="invalid-image"
            )
            return pb.ClassifyStreamResponse(id=request.id, error=error)
        model = request.request.model or "resnet18"
        if model not in self.models:
            return pb.ClassifyStreamResponse(
                id=request.id, error=pb.ImageError(code=5, message=f"no model {model!r}")
            )
        response = pb.ClassifyResponse(
            model=model,
            version=request.request.version or self.models[model].version,
            results=[_result(0, image, request.request)],
            batch_size=1,
        )
        return pb.ClassifyStreamResponse(id=request.id, response=response)


def _is_bad(image):
    return image.encoded.startswith(b"bad")


def _result(number, image, request):
    if _is_bad(image):
        message = f"images[{number}]: expected an image, got something else"
        return pb.ImageResult(error=pb.ImageError(code=3, message=message))
    content = image.encoded or image.raw.data
    best = pb.Prediction(index=7, label=content[:64].decode("latin-1"), probability=0.5)
    others = [
        pb.Prediction(index=rank, label=f"class {rank}", probability=0.5**rank)
        for rank in range(2, (request.top_k or 5) + 1)
    ]
    probable = [one for one in [best, *others] if one.probability >= request.min_probability]
    return pb.ImageResult(predictions=pb.Predictions(predictions=probable))


@dataclass
class FakeServer:
    """The running server: where it is, and what may be asked of it and told to it."""

    address: str
    service: FakeService
    health: health.HealthServicer
    stopping: threading.Event
    """Set when the test is over; a script that waits waits for this."""

    stop: Callable[[], None] = lambda: None
    """Ends the server, as a crash would."""

    def never_answer(self) -> None:
        self.service.script = lambda request, context: self.stopping.wait(30)

    def always(self, code: grpc.StatusCode, details: str = "why", **trailers: str) -> None:
        def abort(request, context):
            context.set_trailing_metadata([(key.replace("_", "-"), value) for key, value in trailers.items()])
            context.abort(code, details)

        self.service.script = abort

    def set_serving(self, model: str, *, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        self.health.set(model, status.SERVING if serving else status.NOT_SERVING)


def start_server(
    address: str, credentials: grpc.ServerCredentials | None = None
) -> tuple[grpc.Server, FakeServer]:
    server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.max_receive_message_length", -1)])
    fake = FakeServer(address, FakeService(), health.HealthServicer(), threading.Event())
    add_ClassificationServiceServicer_to_server(fake.service, server)
    health_pb2_grpc.add_HealthServicer_to_server(fake.health, server)
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    fake.address = f"127.0.0.1:{port}"
    server.start()
    fake.stop = lambda: server.stop(grace=None).wait()
    return server, fake


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is tried again be so at once, for tests of what comes of it in the end."""
    monkeypatch.setattr("vistazo_client._retry.FIRST_BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr("vistazo_client._retry.LAST_BACKOFF_SECONDS", 0.01)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    running, fake = start_server("127.0.0.1:0")
    yield fake
    fake.stopping.set()
    running.stop(grace=None).wait()


@pytest.fixture
def told(server) -> FakeServer:
    """The server, which says how it prepares the images of resnet18."""
    server.service.models["resnet18"] = model()
    return server


@pytest.fixture(params=[Client, BlockingAsyncClient], ids=["blocking", "asyncio"])
def open_client(request) -> type[Client]:
    """Client, and AsyncClient as if it were one."""
    return request.param


@pytest.fixture(autouse=True)
def _requests_are_filled(monkeypatch):
    """However busy the machine is: what a slow source changes is tested where it is the point."""
    monkeypatch.setattr("vistazo_client._codec.GATHER_SECONDS", math.inf)


@pytest.fixture
def client(server, open_client) -> Iterator[Client]:
    with open_client(server.address, timeout=5) as client:
        yield client


@pytest.fixture
def nobody() -> str:
    """An address where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def starting_server(nobody) -> Iterator[Callable[[], FakeServer]]:
    """Call it to start a server at the address where `nobody` was."""
    running = []

    def start() -> FakeServer:
        server, fake = start_server(nobody)
        running.append((server, fake))
        return fake

    yield start
    for server, fake in running:
        fake.stopping.set()
        server.stop(grace=None).wait()


@pytest.fixture
def start_tls() -> Iterator[Callable[..., FakeServer]]:
    """Call it to start a server with these files; with `mtls` it asks clients for a certificate."""
    running = []

    def start(files: Files, *, mtls: bool = False) -> FakeServer:
        pair = (files.key.read_bytes(), files.certificate.read_bytes())
        authority = files.authority.read_bytes() if mtls else None
        server, fake = start_server(
            "127.0.0.1:0", grpc.ssl_server_credentials([pair], authority, require_client_auth=mtls)
        )
        running.append((server, fake))
        return fake

    yield start
    for server, fake in running:
        fake.stopping.set()
        server.stop(grace=None).wait()


@pytest.fixture
def start_at() -> Iterator[Callable[[str], FakeServer]]:
    """Call it with an address, such as 127.0.0.2:0, to start a server there."""
    running = {}

    def start(address: str) -> FakeServer:
        host = address.rpartition(":")[0]
        server, fake = start_server(address)
        fake.address = f"{host}:{fake.address.rpartition(':')[2]}"
        running[fake.address] = (server, fake)
        return fake

    yield start
    for server, fake in running.values():
        fake.stopping.set()
        server.stop(grace=None).wait()
