"""The pretrained path for real: checkpoints served by a mirror, checked, cached, loaded, exported.

The checkpoints are made here from seeded networks. torchvision's file names carry the hash of the
published file, so its weights are made to point to names that carry the hash of ours.
"""

import functools
import hashlib
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from click.testing import Result

from vistazo_export.errors import WeightsError, WeightsUnavailableError
from vistazo_export.exporter import ExportRequest, export_model
from vistazo_export.networks import download, zoo
from vistazo_export.presets.torchvision_import import torchvision_models
from vistazo_proto.manifest_pb2 import Weights as WeightsRecord

PUBLISHER = "https://download.example.invalid/models"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the mirror's folder and notes what is asked for."""

    def __init__(self, *args, requested: list[str], **kwargs):
        self.requested = requested
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        self.requested.append(self.path.removeprefix("/"))
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""


@dataclass
class Mirror:
    """A web server on a port of its own."""

    folder: Path
    url: str
    requested: list[str] = field(default_factory=list)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """An empty mirror, and an empty cache in TORCH_HOME."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "mirror"
    folder.mkdir()
    requested: list[str] = []
    handler = functools.partial(Handler, requested=requested, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield Mirror(folder, f"http://127.0.0.1:{server.server_port}", requested)
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where torch.hub keeps checkpoints, given the TORCH_HOME of `mirror`."""
    return tmp_path / "torch-home" / "hub" / "checkpoints"


@pytest.fixture
def publish(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a seeded network on the mirror as if it were torchvision's own; returns its file there."""

    def publish(architecture: str) -> Path:
        module = zoo.load(zoo.resolve(architecture, "untrained")).module
        file = mirror.folder / "unnamed"
        torch.save(module.state_dict(), file)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        file = file.rename(mirror.folder / f"{architecture}-{digest[:8]}.pth")
        weights = torchvision_models().get_model_weights(architecture).DEFAULT
        monkeypatch.setattr(weights.value, "url", f"{PUBLISHER}/{file.name}")
        return file

    return publish


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("architecture", ["resnet18", "alexnet"])
def test_pretrained_weights_come_from_the_mirror_and_are_exported(
    architecture: str, mirror: Mirror, publish: Callable[[str], Path], cache: Path, tmp_path: Path
):
    file = publish(architecture)
    request = ExportRequest(architecture, tmp_path / "models", weights_mirror=mirror.url, max_batch_size=4)
    exported = export_model(request)

    weights = exported.manifest.weights
    assert weights.source == WeightsRecord.PRETRAINED
    assert weights.name.endswith("_Weights.IMAGENET1K_V1")
    assert weights.url == f"{PUBLISHER}/{file.name}"
    assert weights.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert exported.manifest.labels[:2] == ["tench", "goldfish"]
    assert exported.manifest.parity.top1_agreement == 1
    assert exported.manifest.parity.max_rel_logit_diff <= 1e-4
    assert [path.name for path in cache.iterdir()] == [file.name]

    assert not export_model(request).published
    assert mirror.requested == [file.name]


def test_a_cached_checkpoint_is_not_downloaded_again(
    mirror: Mirror, publish: Callable[[str], Path], cache: Path
):
    file = publish("squeezenet1_1")
    recipe = zoo.resolve("squeezenet1_1")
    seen: list[tuple[int, int | None]] = []
    progress = download.Progress(downloaded=lambda done, total: seen.append((done, total)))
    zoo.load(recipe, mirror=mirror.url, progress=progress)
    zoo.load(recipe, mirror=mirror.url)

    assert mirror.requested == [file.name]
    assert seen[-1] == (file.stat().st_size, file.stat().st_size)
    assert (cache / file.name).read_bytes() == file.read_bytes()


def test_a_corrupted_download_is_refused_and_not_kept(
    mirror: Mirror,
    publish: Callable[[str], Path],
    cache: Path,
    tmp_path: Path,
    vistazo: Callable[..., Result],
):
    flip_a_byte(publish("squeezenet1_1"))
    models = tmp_path / "models"
    result = vistazo(
        "export", "squeezenet1_1", "--models", models, "--weights-mirror", mirror.url, "--allow-untrained"
    )

    assert result.exit_code == 1
    assert "is not the published file: its SHA-256 begins" in result.stderr
    assert list(cache.iterdir()) == []
    assert not models.exists()


def test_a_cache_that_was_damaged_is_repaired(mirror: Mirror, publish: Callable[[str], Path], cache: Path):
    file = publish("squeezenet1_1")
    recipe = zoo.resolve("squeezenet1_1")
    zoo.load(recipe, mirror=mirror.url)
    flip_a_byte(cache / file.name)
    zoo.load(recipe, mirror=mirror.url)

    assert mirror.requested == [file.name] * 2
    assert (cache / file.name).read_bytes() == file.read_bytes()


def test_a_file_with_the_right_hash_but_code_inside_is_refused(
    mirror: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    file = mirror.folder / "unnamed"
    torch.save({"features.0.weight": Path("code")}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file = file.rename(mirror.folder / f"squeezenet1_1-{digest[:8]}.pth")
    weights = torchvision_models().SqueezeNet1_1_Weights.DEFAULT
    monkeypatch.setattr(weights.value, "url", f"{PUBLISHER}/{file.name}")

    with pytest.raises(WeightsError, match="pickled with code that is not run here"):
        zoo.load(zoo.resolve("squeezenet1_1"), mirror=mirror.url)


def test_a_file_that_the_mirror_lacks_is_one_clear_line(mirror: Mirror, cache: Path):
    with pytest.raises(WeightsUnavailableError, match=r"resnet18-f37072fd\.pth: HTTP 404 File not found"):
        zoo.load(zoo.resolve("resnet18"), mirror=mirror.url)
    assert not cache.exists()


def test_a_download_that_breaks_off_is_refused_and_not_kept(mirror: Mirror, cache: Path):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_half() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 500)

        thread = threading.Thread(target=answer_half)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(WeightsUnavailableError, match="broke off"):
            zoo.load(zoo.resolve("resnet18"), mirror=url)
        thread.join()

    assert list(cache.iterdir()) == []


def test_a_host_that_never_answers_fails_within_15_seconds_in_one_line(
    mirror: Mirror, tmp_path: Path, vistazo: Callable[..., Result]
):
    # Accepts the connection in the kernel, as a dead proxy does, and says nothing.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        started = time.monotonic()
        result = vistazo("export", "resnet18", "--models", tmp_path / "models", "--weights-mirror", url)
        took = time.monotonic() - started

    assert result.exit_code == 1
    assert took < 15
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert "no answer from 127.0.0.1 within 8 s" in errors[0]
    assert "--weights-mirror" in errors[0]
    assert not (tmp_path / "models").exists()


def test_a_host_that_cannot_be_found_or_refuses_fails_at_once(mirror: Mirror):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(WeightsUnavailableError, match="Connection refused"):
        zoo.load(zoo.resolve("resnet18"), mirror=f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["file:///etc", "mirror.example", "http://"])
def test_a_mirror_that_is_no_web_address_is_refused(mirror: Mirror, address: str):
    with pytest.raises(WeightsUnavailableError, match="not an http:// or https:// address"):
        zoo.load(zoo.resolve("resnet18"), mirror=address)


def test_allow_untrained_falls_back_loudly_and_tries_again_the_next_time(
    mirror: Mirror, publish: Callable[[str], Path], tmp_path: Path, vistazo: Callable[..., Result]
):
    arguments = ("export", "squeezenet1_1", "--models", tmp_path / "models", "--max-batch", 2)
    arguments += ("--weights-mirror", mirror.url, "--allow-untrained")
    first = vistazo(*arguments)

    assert first.exit_code == 0
    assert "Using UNTRAINED weights instead" in first.stderr
    assert "UNTRAINED (seed 0)" in first.stdout

    second = vistazo(*arguments)
    assert "unchanged" in second.stdout

    publish("squeezenet1_1")
    third = vistazo(*arguments)
    assert "UNTRAINED" not in third.stdout + third.stderr
    assert "SqueezeNet1_1_Weights.IMAGENET1K_V1" in third.stdout
