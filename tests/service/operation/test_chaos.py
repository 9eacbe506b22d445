"""What the world does to a process: it is stopped for a while, its clock jumps, its disk is full.

What a disk under the repository can do besides is in test_repository_disk.py.
"""

import datetime as dt
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from support import images
from support.callers import callers, metric, wait_until
from support.process import PATIENCE_SECONDS, ServerProcess, server_process, vistazo
from support.tiny import plain, tiny_model, write_model
from vistazo_client import Client, DeadlineExceededError

pytestmark = pytest.mark.serial

RED = plain(200, 10, 10)
STOP_SECONDS = 5.0
HOUR = 3600


# SIGSTOP


def test_a_process_that_is_stopped_for_5_s_answers_again_and_runs_nothing_for_those_who_left(tmp_path):
    write_model(tmp_path, model=tiny_model(cost=60))  # about 20 ms a sample
    with (
        server_process(tmp_path, "--max-batch-size", "2", "--threads", "1") as server,
        Client(server.address, timeout=PATIENCE_SECONDS) as patient,
    ):
        with callers(server, count=4, deadline=1.0) as endings:
            server.process.send_signal(signal.SIGSTOP)
            before = endings["OK"]
            waiting = threading.Thread(target=patient.classify, args=(RED,))
            waiting.start()
            time.sleep(STOP_SECONDS)
            during = Counter(endings)
            server.process.send_signal(signal.SIGCONT)
            # The run that was under way looked as if it took 5 s, and still callers with 1 s are served soon.
            wait_until(lambda: endings["OK"] > during["OK"] + 20)
            waiting.join(PATIENCE_SECONDS)
            assert not waiting.is_alive()
            assert patient.health("tiny")
        wait_until(lambda: in_flight(server) == 0)
        samples = metric(server, "vistazo_inference_samples_total")
        server.terminate()
        assert server.wait() == 0

    # What was answered at the very moment of the stop may still have been on its way.
    assert during["OK"] - before <= 4
    assert during["DEADLINE_EXCEEDED"] >= 4
    assert set(endings) <= {"OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
    # Beside the answered ones: the batches in the engine as it stopped, and who left while theirs ran.
    assert samples <= endings["OK"] + 1 + endings["DEADLINE_EXCEEDED"]


def in_flight(server: ServerProcess) -> float:
    return metric(server, "vistazo_inference_in_flight_requests")


# The clock


class WallClock:
    """The wall clock of a process, which a test can move."""

    def __init__(self, folder: Path, library: Path) -> None:
        self._file = folder / "offset"
        self._file.write_bytes(struct.pack("l", 0))
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(self._file)}

    def move(self, seconds: int) -> None:
        with self._file.open("r+b") as file:  # in place: the process has it mapped
            file.write(struct.pack("l", seconds))


@pytest.fixture
def wall_clock(tmp_path) -> WallClock:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build the library that moves a process's clock")
    library = tmp_path / "clock_shim.so"
    source = Path(__file__).parents[2] / "support" / "clock_shim.c"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O", "-o", library, source], check=True, capture_output=True
    )
    return WallClock(tmp_path, library)


@pytest.mark.parametrize("jump", [HOUR, -HOUR, 10 * 365 * 24 * HOUR])
def test_a_jump_of_the_wall_clock_disturbs_nobody(models, wall_clock, jump):
    flags = ["--log-level", "debug", "--queue-delay-ms", "5"]
    slow = images.file(plain(200, 10, 10, height=3000, width=3000))  # to decode
    with (
        server_process(models, *flags, env=wall_clock.environment) as server,
        callers(server, count=4, deadline=10.0) as endings,
        Client(server.address, timeout=10) as client,
    ):
        for offset in (jump, 0, jump):
            seen = endings["OK"]
            wall_clock.move(offset)
            wait_until(lambda seen=seen: endings["OK"] > seen + 50)
        assert client.health("tiny")
        # A deadline still counts: this one cannot be kept, and is not waited out for an hour.
        with pytest.raises(DeadlineExceededError):
            client.classify(slow, timeout=0.005)
        uptime = metric(server, "grpc_server_handling_seconds_sum")
        disturbed = set(endings) - {"OK"}
        server.terminate()
        assert server.wait() == 0

    assert disturbed == set()
    # No duration has the hour in it.
    assert 0 <= uptime < 600
    # And the clock did jump, which the log's times show.
    times = [dt.datetime.fromisoformat(line["timestamp"]) for line in server.log]
    assert max(times) - min(times) >= dt.timedelta(seconds=abs(jump) - 60)


# A full disk


def test_an_import_into_a_full_disk_fails_with_one_line_and_leaves_nothing_half_done(tmp_path):
    disk, graph = tmp_path / "disk", tmp_path / "tiny.onnx"
    disk.mkdir()
    graph.write_bytes(tiny_model().SerializeToString())
    try:
        mounted = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
        subprocess.run(mounted, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("file systems cannot be mounted here: it needs root and CAP_SYS_ADMIN")
    try:
        write_model(disk)
        with pytest.raises(OSError, match="No space left"):
            (disk / "filler").write_bytes(bytes(1 << 20))
        options = ("--preprocess", "none", "--name", "other", "--models", disk)
        ended = vistazo("import", graph, *options)

        assert ended.returncode == 1
        assert "No space left on device" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert sorted(path.name for path in disk.iterdir()) == ["filler", "tiny"]
        # The server starts from a full disk, and serves.
        with server_process(disk) as server, Client(server.address) as client:
            assert client.classify(RED).top.label == "red"
        (disk / "filler").unlink()
        assert vistazo("import", graph, *options).returncode == 0
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True, capture_output=True)
