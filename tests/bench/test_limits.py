"""The limits, for a tiny network; that they run and count, not how fast they are."""

import numpy as np
import pytest

from support.tiny import SIDE, plain, write_model
from vistazo_bench.errors import BenchError
from vistazo_bench.measuring.limits import (
    LEAST_RUNS,
    Decoder,
    DecodeSpec,
    EchoServer,
    RawEngine,
    jpeg_bound,
)
from vistazo_bench.measuring.load import ClosedLoop, LoadGenerator, Target
from vistazo_bench.measuring.model_files import decode_spec, model_folder
from vistazo_bench.measuring.pictures import jpeg
from vistazo_client.cli.worker import Worker


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("repository"))


def images():
    return np.stack([plain(200, 10, 10), plain(10, 200, 10)])


def test_the_raw_engine_runs_every_bucket_in_its_own_process(tiny):
    with Worker(RawEngine, tiny / "model.onnx", images(), 1) as engine:
        runs = engine.call(RawEngine.search, 0.001, 8)
    assert [one.batch_size for one in runs] == [1, 2, 4, 8]
    assert all(len(one.run_seconds) >= LEAST_RUNS and one.images_per_second > 0 for one in runs)


def test_the_echo_answers_with_the_bytes_that_it_was_given():
    with Worker(EchoServer) as echo, Worker(LoadGenerator) as generator:
        address = echo.call(EchoServer.answer_with, b"x" * 321)
        target = Target(address, (b"y" * 1000,), "/vistazo.bench.Echo/Echo", channels=2)
        result = generator.call(LoadGenerator.closed_loop, ClosedLoop(target, 4, 30.0, max_requests=64))
    assert (result.status == 0).all()
    assert {response for _, response in result.samples} == {b"x" * 321}


def test_the_decoder_makes_the_models_input(tiny):
    spec = decode_spec(tiny)
    assert spec == DecodeSpec(SIDE, SIDE, 3, SIDE, "bilinear")
    decoder = Decoder(DecodeSpec(224, 200, 3, 256, "bilinear"))
    file = jpeg(np.full((400, 600, 3), (200, 100, 50), dtype=np.uint8), 0)
    pixels = decoder._decode(file)
    assert pixels.shape == (224, 200, 3)
    assert np.abs(pixels.astype(int) - (200, 100, 50)).max() < 4
    assert decoder.cpu_seconds_per_image([file], 0.0) > 0


def test_the_jpeg_bound_shares_the_cores_between_decoding_and_the_engine():
    assert jpeg_bound(100.0, 0.0, 2) == pytest.approx(100)
    # 2 cores: 20 ms of them for the network, 5 ms to decode.
    assert jpeg_bound(100.0, 0.005, 2) == pytest.approx(2 / 0.025)


def test_the_highest_version_is_the_one_that_is_compared(tiny):
    repository = tiny.parent.parent
    newer = write_model(repository, version=10)
    assert model_folder(repository, "tiny") == newer
    with pytest.raises(BenchError, match=r"no other/VERSION/model\.onnx"):
        model_folder(repository, "other")


def test_a_manifest_that_cannot_be_read_is_said_so(tmp_path):
    (tmp_path / "manifest.json").write_text('{"input": {}}')
    with pytest.raises(BenchError, match="cannot be read"):
        decode_spec(tmp_path)
