"""Photographs of 50 megapixels, ten at once, and a server that has one gigabyte."""

import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from support import process
from support.cgroups import memory_group
from support.images import file, turned
from support.process import VISTAZO, server_process
from support.serving import encoded, labels
from support.tiny import plain
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import classification_pb2_grpc as pb_grpc

pytestmark = [
    pytest.mark.slow,
    pytest.mark.serial,
    pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc"),
]

GIGABYTE = 1 << 30
# Where no control group can be made: what a container of that size takes by default.
DECODE_MB = 430
# And ulimit, which counts stacks and heaps that nobody has touched, too: the wall behind.
WALL_KB = GIGABYTE // 1024 * 5 // 4
AT_ONCE = 10
# What a sensor of 50 megapixels gives.
WIDTH, HEIGHT = 8160, 6144
SECONDS = 120.0


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    coarse = np.random.default_rng(1).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((WIDTH, HEIGHT))


@pytest.fixture
def one_gigabyte(tmp_path, monkeypatch) -> Iterator[tuple[str, ...]]:
    """Let servers have one gigabyte of memory, and no more, as a container of that size does.

    Gives the options that they then need: none in a control group, whose limit they read.
    """
    command = tmp_path / "vistazo"
    monkeypatch.setattr(process, "VISTAZO", command)
    with memory_group(GIGABYTE) as group:
        wall = f"ulimit -d {WALL_KB}" if group is None else f"echo $$ > {group}/cgroup.procs"
        command.write_text(f'#!/bin/sh\n{wall}\nexec {VISTAZO} "$@"\n')
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
        yield () if group else ("--decode-memory-mb", str(DECODE_MB))


def peak_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


KINDS = {
    "as it is": lambda photo: file(photo, "JPEG", quality=90),
    "on its side": lambda photo: turned(photo, 6, "JPEG", quality=90),
    "progressive": lambda photo: file(photo, "JPEG", quality=85, progressive=True),
    "transparent": lambda photo: file(photo.quantize(32), transparency=bytes(range(32)), compress_level=1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ten_photographs_at_once_are_answered_or_refused_and_others_are_served(
    models, photograph, one_gigabyte, kind
):
    huge = pb.ClassifyRequest(images=[encoded(KINDS[kind](photograph))])
    small = pb.ClassifyRequest(images=[encoded(file(plain(200, 10, 10, height=80, width=100), "JPEG"))])
    codes: list[grpc.StatusCode] = []
    refusals: list[str] = []
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with server_process(models, *one_gigabyte) as server:

        def ask(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
            with grpc.insecure_channel(server.address, options=options) as channel:
                return pb_grpc.ClassificationServiceStub(channel).Classify(request, timeout=SECONDS)

        def ask_for_huge() -> None:
            try:
                assert len(ask(huge).results[0].predictions.predictions) == 3
                codes.append(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                codes.append(error.code())
                refusals.append(error.details())

        callers = [threading.Thread(target=ask_for_huge) for _ in range(AT_ONCE)]
        for caller in callers:
            caller.start()
        waits = []
        while any(caller.is_alive() for caller in callers):
            began = time.monotonic()
            assert labels(ask(small).results[0])[0] == "red"
            waits.append(time.monotonic() - began)
            time.sleep(0.05)

        assert len(codes) == AT_ONCE
        assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}, refusals
        assert codes.count(grpc.StatusCode.OK) >= AT_ONCE // 2
        assert len(waits) > 5
        assert sorted(waits)[len(waits) // 2] < 1
        assert peak_kb(server.process.pid) < GIGABYTE // 1024
        assert server.process.poll() is None
        assert labels(ask(small).results[0])[0] == "red"


@pytest.mark.usefixtures("one_gigabyte")
def test_what_needs_more_memory_than_there_is_is_refused_and_says_what_it_needs(models, photograph):
    # WebP's decoder keeps two canvases.
    webp = pb.ClassifyRequest(images=[encoded(file(photograph, "WEBP", method=0))])
    with (
        server_process(models, "--decode-memory-mb", str(DECODE_MB)) as server,
        grpc.insecure_channel(server.address) as channel,
        pytest.raises(grpc.RpcError) as refused,
    ):
        pb_grpc.ClassificationServiceStub(channel).Classify(webp, timeout=SECONDS)

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (
        f"takes at most {DECODE_MB} MiB to decode, got 8160×6144 pixels that take" in refused.value.details()
    )
    assert "--decode-memory-mb" in refused.value.details()
