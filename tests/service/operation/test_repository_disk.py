"""What happens to the disk under the model repository does not happen to the models that are loaded."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.process import ServerProcess, server_process
from support.tiny import plain, tiny_model, write_model
from vistazo_client import Client

POLL = ("--model-control", "poll", "--poll-seconds", "0.05")
RED = plain(200, 10, 10)


def mount(folder: Path) -> None:
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True, capture_output=True
    )


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB of its own, with the model `tiny`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount(folder)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("file systems cannot be mounted here: it needs root and CAP_SYS_ADMIN")
    write_model(folder)
    yield folder
    while os.path.ismount(folder):
        unmount(folder)


def versions(server: ServerProcess) -> list[tuple[str, str]]:
    with Client(server.address) as client:
        return [(model.version, model.state) for model in client.models()]


def test_an_unmounted_repository_goes_on_serving_and_is_followed_again_when_it_is_back(disk):
    with server_process(disk, *POLL) as server, Client(server.address) as client:
        unmount(disk)
        lost = server.wait_for("repository_unreadable")
        for _ in range(20):
            assert client.classify(RED).top.label == "red"
        assert client.health("tiny")
        assert versions(server) == [("1", "READY")]

        mount(disk)
        write_model(disk)
        server.wait_for("repository_readable")
        write_model(disk, version=2)
        assert server.wait_for("model_ready")["version"] == "2"
        assert client.classify(RED).version == "2"
        server.terminate()
        assert server.wait() == 0

    assert lost["reason"] == f"{disk} has no models any more"
    events = [line["event"] for line in server.log]
    assert events.count("repository_unreadable") == 1
    assert "Traceback" not in "".join(server.other_output)


def test_a_full_disk_under_the_repository_stops_the_new_version_and_nothing_else(disk):
    with server_process(disk, *POLL) as server, Client(server.address) as client:
        # Not by export, which publishes whole versions only, but as a careless copy leaves it.
        folder = disk / "tiny" / "2"
        folder.mkdir()
        with (
            pytest.raises(OSError, match="No space left") as full,
            (folder / "model.onnx").open("wb") as file,
        ):
            file.write(bytes(2 << 20))
        assert full.value.errno == errno.ENOSPC
        # Its manifest has not come, and nothing more is tried of it.
        assert server.wait_for("version_held_back")["version"] == "2"
        assert client.classify(RED).version == "1"
        assert client.health("tiny")
        assert versions(server) == [("1", "READY")]

        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        write_model(disk, version=2)
        assert server.wait_for("model_ready")["version"] == "2"
        server.terminate()
        assert server.wait() == 0


def test_a_file_that_never_answers_holds_up_neither_the_others_nor_the_end(models):
    """A pipe that nobody writes stands for a network disk that hangs: to open it never returns."""
    with server_process(models, *POLL) as server, Client(server.address) as client:
        hanging = models / "hanging" / "1"
        hanging.mkdir(parents=True)
        os.mkfifo(hanging / "model.onnx")
        os.mkfifo(hanging / "manifest.json")
        while len(client.models()) < 2:
            assert client.classify(RED, model="tiny").top.label == "red"
        write_model(models, "other")
        write_model(models, version=2, model=tiny_model(divisor=20))
        assert {server.wait_for("model_ready")["model"] for _ in range(2)} == {"tiny", "other"}
        expected = [("hanging", "LOADING"), ("other", "READY"), ("tiny", "READY")]
        # The version that was replaced is listed until its last request is answered.
        while [(one.name, one.state) for one in client.models()] != expected:
            assert client.classify(RED, model="tiny").top.label == "red"
        server.terminate()

        assert server.wait() == 0
    assert server.log[-1]["event"] == "stopped"
