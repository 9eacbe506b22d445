"""A signal ends the command, whatever code it meets."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from vistazo_export.interrupts import TERMINATED, shielded, terminated_like_interrupted
from vistazo_export.publishing.repository import staging

SIGNALS = pytest.mark.parametrize(
    ("number", "ending"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
LONG = 30.0
"""Seconds that nobody waits for."""


def send(number):
    os.kill(os.getpid(), number)


def work():
    """Be busy, as bytecode is."""
    until = time.monotonic() + LONG
    while time.monotonic() < until:
        pass
    pytest.fail("nothing ended the work")


def swallowing(number):
    with suppress(BaseException):
        send(number)
        work()
    work()


def wrapping(number):
    try:
        send(number)
        work()
    except BaseException as error:
        raise RuntimeError("the library failed") from error


def wrapping_out_of_sight(number):
    try:
        send(number)
        work()
    except BaseException:  # noqa: BLE001  as libraries do
        raise RuntimeError("the library failed") from None


def going_on_after_a_failure(number):
    for _ in range(3):
        with suppress(RuntimeError):
            wrapping(number)
            work()
    work()


def finishing_all_the_same(number):
    with suppress(BaseException):
        send(number)
        work()


@SIGNALS
@pytest.mark.parametrize(
    "meets", [swallowing, wrapping, wrapping_out_of_sight, going_on_after_a_failure, finishing_all_the_same]
)
def test_a_signal_ends_what_would_go_on(meets, number, ending):
    began = time.monotonic()
    with pytest.raises(ending) as ended, terminated_like_interrupted():
        meets(number)

    assert time.monotonic() - began < LONG / 2
    if ending is SystemExit:
        assert ended.value.code == TERMINATED == 143


@SIGNALS
def test_what_clears_up_is_not_disturbed(number, ending):
    cleared = []

    def worked():
        try:
            send(number)
            work()
        finally:
            for step in range(5):
                time.sleep(0.05)
                cleared.append(step)
            with suppress(KeyError):
                raise KeyError("of the clearing's own")

    with pytest.raises(ending), terminated_like_interrupted():
        worked()

    assert cleared == list(range(5))


@SIGNALS
def test_a_step_that_must_not_stay_half_done_ends_first(number, ending):
    done = []

    def worked():
        with shielded():
            send(number)
            time.sleep(0.3)
            done.append("step")
        work()

    with pytest.raises(ending), terminated_like_interrupted():
        worked()

    assert done == ["step"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a listing cut short
@SIGNALS
def test_staging_is_gone_whenever_a_signal_comes(tmp_path, number, ending):
    def stage(timer, repository):
        timer.start()
        while True:
            with staging(repository, "lenet") as staged:
                (staged.version / "model.onnx").write_bytes(b"x")

    for moment in range(20):
        # Each of its own: a lock that was cut short ends with the process, which goes on here.
        repository = tmp_path / str(moment)
        timer = threading.Timer(moment * 0.0005, send, [number])
        with pytest.raises(ending), terminated_like_interrupted():
            stage(timer, repository)
        timer.join()
        assert [path.name for path in repository.glob(".*") if path.is_dir()] == []


def test_afterwards_signals_are_as_before():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)]
    with suppress(SystemExit), terminated_like_interrupted():
        send(signal.SIGTERM)
        work()

    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_another_thread_may_run_a_command_without_signals():
    ran = []

    def command():
        with terminated_like_interrupted():
            ran.append(True)

    thread = threading.Thread(target=command)
    thread.start()
    thread.join()
    assert ran == [True]


WHILE_IMPORTING = """
import os, signal, sys
from importlib.abc import MetaPathFinder

_, module, number, models = sys.argv

class Finder(MetaPathFinder):
    sent = False
    def find_spec(self, name, path, target=None):
        if name == module and not Finder.sent:
            Finder.sent = True
            os.kill(os.getpid(), int(number))

sys.meta_path.insert(0, Finder())
from vistazo_client.cli import main
main(["export", "lenet", "nin", "--weights", "untrained", "--models", models])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    ["torch._dynamo", "torch.export._trace", "torch.onnx._internal.exporter._core", "onnxscript", "sympy"],
)
@SIGNALS
def test_an_export_ends_while_torch_imports(tmp_path: Path, module: str, number: int, ending: type):
    models = tmp_path / "models"
    done = subprocess.run(
        [sys.executable, "-c", WHILE_IMPORTING, module, str(int(number)), str(models)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == (143 if ending is SystemExit else 130), done.stderr
    assert "Traceback" not in done.stderr
    assert not models.exists() or [path.name for path in models.iterdir() if path.name != ".lock"] == []
