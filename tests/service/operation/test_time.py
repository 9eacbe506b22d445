"""Time that stands still for the process, or jumps for everybody, loses no request and spoils no measure."""

import datetime as dt
import os
import re
import signal
import urllib.request
from pathlib import Path

import pytest

from support.load import background_load
from support.process import ServerProcess, server_process
from support.tiny import plain
from vistazo_client import Client, DeadlineExceededError

RED = plain(200, 10, 10)
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)

STOPPED_SECONDS = 5.0


def metric(server: ServerProcess, name: str) -> float:
    """Return the sum of a metric's series."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as response:
        text = response.read().decode()
    values = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
    assert values, name
    return sum(map(float, values))


def test_a_process_that_was_stopped_answers_again_as_before(models):
    with server_process(models) as server, Client(server.address, retries=0) as client:
        assert client.classify(RED).top.label == "red"
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(DeadlineExceededError):
                client.classify(RED, timeout=STOPPED_SECONDS)
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        for _ in range(20):
            assert client.classify(RED).top.label == "red"
        assert client.health()

        # The one that was given up may have run, if its cancellation came later than itself.
        assert metric(server, "vistazo_inference_samples_total") in (21, 22)
        assert metric(server, "vistazo_inference_in_flight_requests") == 0
        assert metric(server, "vistazo_inference_queue_samples") == 0
        # What stood still was the process, not a run: the prediction knows the difference.
        assert metric(server, "vistazo_inference_predicted_wait_seconds") < STOPPED_SECONDS / 5
        server.terminate()
        assert server.wait() == 0


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed; Debian's package is `faketime`")
def test_jumps_of_the_clock_touch_the_log_and_nothing_else(models, tmp_path):
    clock = tmp_path / "clock"
    clock.write_text("+0")
    preload = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    flags = ("--log-level", "debug")
    with (
        server_process(models, *flags, env=preload) as server,
        Client(server.address, retries=0) as client,
        background_load(client, RED, models=("tiny",)) as load,
    ):
        for jump in ("+1d", "-1d", "+0"):
            clock.write_text(jump)
            answered = len(load.answered)
            while len(load.answered) < answered + 50:
                assert client.classify(RED, timeout=10).top.label == "red"
        assert metric(server, "vistazo_inference_request_duration_seconds_sum") < 60
        assert metric(server, "vistazo_inference_predicted_wait_seconds") < 1
        assert client.health()

    assert load.errors == []
    days = {dt.datetime.fromisoformat(line["timestamp"]).date() for line in server.log}
    assert len(days) >= 3
