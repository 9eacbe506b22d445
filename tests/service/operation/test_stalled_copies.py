"""While a version is being copied, in whatever order and with whatever stops, no caller loses an answer."""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from support.process import ServerProcess, server_process
from support.tiny import plain, tiny_model, write_model
from vistazo_client import Client
from vistazo_proto import open_inference_pb2 as pb
from vistazo_proto import open_inference_pb2_grpc

POLL = ("--model-control", "poll", "--poll-seconds", "0.05")
RED = plain(200, 10, 10)


@contextmanager
def steady_caller(server: ServerProcess) -> Iterator[Callable[[], list[str]]]:
    """Classify all the time; what is given returns the versions that answered, and what failed."""
    stop = threading.Event()
    seen: list[str] = []

    def call() -> None:
        with Client(server.address) as client:
            while not stop.is_set():
                try:
                    said = client.classify(RED).version
                except Exception as error:  # noqa: BLE001  whatever a caller sees is a failure here
                    said = str(error)
                if seen[-1:] != [said]:
                    seen.append(said)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield lambda: seen
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def aside(tmp_path: Path) -> Path:
    """The files of a whole version 2, elsewhere."""
    return write_model(tmp_path / "aside", version=2, model=tiny_model(divisor=20))


def wait_until_ready(server: ServerProcess) -> None:
    while server.wait_for("model_ready")["version"] != "2":
        pass


def test_the_graph_first_then_a_stop_then_the_manifest(models, aside):
    with server_process(models, *POLL) as server, steady_caller(server) as seen:
        target = models / "tiny/2"
        target.mkdir()
        shutil.copy(aside / "model.onnx", target)
        held = server.wait_for("version_held_back")
        assert (held["level"], held["version"], held["path"]) == ("warning", "2", str(target))
        shutil.copy(aside / "manifest.json", target)
        wait_until_ready(server)
        server.wait_for("model_unloaded")

    assert seen()[0] == "1"
    assert set(seen()) <= {"1", "2"}


def test_the_manifest_first_then_half_a_graph_then_a_stop(models, aside):
    content = (aside / "model.onnx").read_bytes()
    with server_process(models, *POLL) as server, steady_caller(server) as seen:
        target = models / "tiny/2"
        target.mkdir()
        shutil.copy(aside / "manifest.json", target)
        with (target / "model.onnx").open("wb", buffering=0) as file:
            file.write(content[: len(content) // 2])
            while (
                "is not the file that its manifest describes" not in server.wait_for("model_failed")["reason"]
            ):
                pass
            file.write(content[len(content) // 2 :])
        wait_until_ready(server)
        server.wait_for("model_unloaded")

    assert set(seen()) <= {"1", "2"}


def test_a_version_without_a_manifest_is_served_when_somebody_asks_for_the_load(models, aside):
    (aside / "manifest.json").unlink()
    shutil.copytree(aside, models / "tiny/2")
    with server_process(models, "--model-control", "explicit", "--load", "*") as server:
        held = [line for line in server.log if line["event"] == "version_held_back"]
        with Client(server.address) as client:
            assert client.classify(RED).version == "1"
        load(server, "tiny")
        with Client(server.address) as client:
            assert [(model.version, model.state) for model in client.models()] == [("2", "READY")]

    assert [line["version"] for line in held] == ["2"]
    assert "--model-control explicit" in held[0]["to_serve_it"]


def load(server: ServerProcess, name: str) -> None:
    """Load a model over Open Inference."""
    with grpc.insecure_channel(server.address) as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=name), timeout=30)
