"""A hundred versions follow one another while callers go on: no request fails, none is answered by two
versions, and the server's memory stays as it is.
"""

import asyncio
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import numpy as np
import pytest

from support.process import ServerProcess, server_process
from support.serving import PATIENCE_SECONDS, probabilities, raw, softmax, until
from support.tiny import LABELS, plain, tiny_manifest, tiny_model, write_model
from vistazo_bench.measuring.machine import resident_bytes
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import classification_pb2_grpc as pb_grpc
from vistazo_proto import open_inference_pb2, open_inference_pb2_grpc
from vistazo_server.engine.session import create_session

pytestmark = [pytest.mark.slow, pytest.mark.serial]

SWAPS = 100
CALLERS = 16

# An instance's weights alone take 0.75 MiB; that the allocator's moods are less is seen below.
MOST_GROWTH_MIB_A_SWAP = 0.2

# Two models that see the same and say it otherwise: other labels, and other probabilities.
DIVISORS = {0: 20.0, 1: 10.0}
LABELS_OF = {0: ("rot", "grün", "blau"), 1: LABELS}
COLOURS = [(200, 150, 120), (150, 200, 120), (120, 150, 200)]


def model(version: int):
    """Return odd and even versions' graphs, heavy enough to be missed."""
    return tiny_model(cost=1, divisor=DIVISORS[version % 2])


def publish(models: Path, version: int) -> None:
    graph = model(version)
    manifest = tiny_manifest("tiny", graph.SerializeToString(), labels=LABELS_OF[version % 2])
    write_model(models, version=version, model=graph, manifest=manifest)


def resident_mib(pid: int) -> float:
    return resident_bytes(pid) / 2**20


def growth(mib: list[float]) -> float:
    """Return the slope of the line through the values, in MiB from one to the next."""
    return float(np.polyfit(range(len(mib)), mib, 1)[0])


@dataclass
class Callers:
    """Callers that ask without a pause, check every answer, and count by version."""

    channel: grpc.aio.Channel
    answered: Counter[int] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    by_service: Counter[str] = field(default_factory=Counter)
    ended: bool = False

    def __post_init__(self) -> None:
        self.stub = pb_grpc.ClassificationServiceStub(self.channel)
        self.tensors = open_inference_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    async def call(self, number: int) -> None:
        # Some send one image of the model's size, some several that must be resized, some a stream, some
        # tensors over the Open Inference Protocol.
        side = 4 if number % 2 else 8
        colours = [COLOURS[(number + at) % 3] for at in range(1 + number % 4)]
        request = pb.ClassifyRequest(
            images=[raw(plain(*colour, height=side, width=side)) for colour in colours]
        )
        while not self.ended:
            try:
                if number % 8 == 0:
                    await self._stream(request, colours)
                elif number % 4 == 1:
                    await self._infer(colours)
                else:
                    self._check(await self.stub.Classify(request, timeout=PATIENCE_SECONDS), colours)
            except grpc.aio.AioRpcError as error:
                self.failed.append(f"{error.code().name}: {error.details()}")
                return

    async def _stream(self, request: pb.ClassifyRequest, colours: list[tuple[int, int, int]]) -> None:
        requests = [pb.ClassifyStreamRequest(id=str(at), request=request) for at in range(20)]
        async for response in self.stub.ClassifyStream(iter(requests), timeout=PATIENCE_SECONDS):
            if response.HasField("error"):
                self.failed.append(f"{response.error.code}: {response.error.message}")
                return
            self._check(response.response, colours)

    async def _infer(self, colours: list[tuple[int, int, int]]) -> None:
        images = np.stack([plain(*colour) for colour in colours])
        request = open_inference_pb2.ModelInferRequest(
            model_name="tiny",
            inputs=[
                open_inference_pb2.ModelInferRequest.InferInputTensor(
                    name="images", datatype="UINT8", shape=images.shape
                )
            ],
            raw_input_contents=[images.tobytes()],
        )
        response = await self.tensors.ModelInfer(request, timeout=PATIENCE_SECONDS)
        version = int(response.model_version)
        logits = np.frombuffer(response.raw_output_contents[0], dtype=np.float32)
        expected = np.array(colours) / DIVISORS[version % 2]
        if logits.tolist() != pytest.approx(expected.ravel().tolist(), rel=1e-5):
            self.failed.append(f"version {version}: expected {expected}, got {logits}")
        self.answered[version] += 1
        self.by_service["tensors"] += 1

    def _check(self, response: pb.ClassifyResponse, colours: list[tuple[int, int, int]]) -> None:
        version = int(response.version)
        labels, divisor = LABELS_OF[version % 2], DIVISORS[version % 2]
        for result, colour in zip(response.results, colours, strict=True):
            expected = dict(zip(labels, softmax(*(channel / divisor for channel in colour)), strict=True))
            if probabilities(result) != pytest.approx(expected, abs=1e-5):
                self.failed.append(f"version {version}: expected {expected}, got {result}")
        self.answered[version] += 1
        self.by_service["images"] += 1


@dataclass
class Held:
    """What the server's process holds, after each swap."""

    mib: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def look(self, pid: int) -> None:
        self.mib.append(resident_mib(pid))
        self.threads.append(len(list(Path(f"/proc/{pid}/task").iterdir())))
        self.files.append(len(list(Path(f"/proc/{pid}/fd").iterdir())))


async def swap(models: Path, server: ServerProcess, callers: Callers) -> Held:
    """Publish one version after the other, each when its predecessor has answered; return what was held."""
    held = Held()
    for version in range(2, SWAPS + 2):
        publish(models, version)
        await until(
            lambda version=version: bool(callers.answered[version] or callers.failed),
            what=f"an answer of version {version}",
        )
        if callers.failed:
            break
        shutil.rmtree(models / "tiny" / str(version - 1))
        held.look(server.process.pid)
    return held


def unloaded(server: ServerProcess) -> int:
    """Return how many versions have ended, by the server's log."""
    return sum(line["event"] == "model_unloaded" for line in list(server.log))


@pytest.mark.timeout(300)  # 25 s on two idle cores
async def test_a_hundred_swaps_under_load_lose_no_request_and_no_memory(models):
    shutil.rmtree(models / "tiny")
    publish(models, 1)
    with server_process(
        models, *("--model-control", "poll", "--poll-seconds", "0.02", "--max-batch-size", "8")
    ) as server:
        async with grpc.aio.insecure_channel(
            server.address, options=[("grpc.enable_http_proxy", 0)]
        ) as channel:
            callers = Callers(channel)
            async with asyncio.TaskGroup() as tasks:
                for number in range(CALLERS):
                    tasks.create_task(callers.call(number))
                try:
                    await until(lambda: callers.answered[1] > CALLERS)
                    held = await swap(models, server, callers)
                    # The last but one ends after its successor's first answer, and a stop would not wait.
                    await until(lambda: unloaded(server) == SWAPS, what="the end of the last but one")
                finally:
                    callers.ended = True
        server.terminate()
        assert server.wait() == 0

    assert callers.failed == []
    assert set(callers.answered) == set(range(1, SWAPS + 2))
    assert min(callers.answered.values()) >= 1
    assert min(callers.by_service["images"], callers.by_service["tensors"]) > 2 * SWAPS
    events = Counter(line["event"] for line in server.log)
    assert events["model_ready"] == SWAPS + 1
    assert events["model_unloaded"] == SWAPS
    assert not {"request_failed", "request_crashed", "model_failed", "batch_failed"} & set(events)
    assert growth(held.mib[SWAPS // 2 :]) < MOST_GROWTH_MIB_A_SWAP, held.mib
    # Instances come and go with threads of their own, and are of different ages when they are counted.
    assert max(held.threads[SWAPS // 2 :]) <= max(held.threads[: SWAPS // 2]) + 4, held.threads
    assert max(held.files[SWAPS // 2 :]) <= max(held.files[: SWAPS // 2]) + 4, held.files


def test_an_instance_lost_at_each_swap_would_show(tmp_path):
    """The positive control of the test above: kept sessions must make memory grow past its bound."""
    path = tmp_path / "model.onnx"
    path.write_bytes(model(1).SerializeToString())
    kept, mib = [], []
    for _ in range(SWAPS // 2):
        session = create_session(path, device="cpu", threads=1)
        session.run(None, {"images": np.zeros((8, 4, 4, 3), dtype=np.uint8)})
        kept.append(session)
        mib.append(resident_mib(os.getpid()))

    assert growth(mib) > 2 * MOST_GROWTH_MIB_A_SWAP, mib
