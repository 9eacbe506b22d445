"""The server that a command works with: one that runs already, or one started here and ended after it."""

import json
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Final

from vistazo_client.cli.errors import CommandError
from vistazo_client.cli.worker import Worker
from vistazo_client.client import Client
from vistazo_client.results import ModelInfo

LISTEN_SECONDS: Final = 60.0
LOAD_SECONDS: Final = 300.0
STOP_SECONDS: Final = 40.0

# What is kept of a server's log, to say why it ended.
LOG_LINES: Final = 50


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that answers."""

    address: str
    pid: int | None
    """None where it was not started here."""
    command: str

    def models(self) -> dict[str, ModelInfo]:
        """Return the ready models by name; of several versions the highest."""
        with Client(self.address) as client:
            ready = [model for model in client.models() if model.ready]
        return {model.name: model for model in sorted(ready, key=lambda model: int(model.version))}


class ServeProcess:
    """`vistazo serve` as a child of a Worker, which ends it when this command ends, however it ends."""

    def __init__(self, models: str, options: Sequence[str]) -> None:
        command = [sys.executable, "-c", "from vistazo_client.cli import main; main()", "serve"]
        command += ["--models", models, "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
        command += ["--log-format", "json", *options]
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._listening = threading.Event()
        self._port = 0
        # A session of its own: Ctrl-C is for the command, which then ends the server in order.
        self._process = subprocess.Popen(  # noqa: S603  our own command
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self._reader = threading.Thread(target=self._read_log, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    def wait_until_listening(self) -> tuple[str, int]:
        """Return the server's address and process id. Raises CommandError when it ends before it listens."""
        self._listening.wait(LISTEN_SECONDS)
        if not self._port:
            raise CommandError(f"vistazo serve did not start: {self._last_words()}")
        return f"127.0.0.1:{self._port}", self._process.pid

    def close(self) -> None:
        """End the server: in order, and if it does not listen, by force."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read_log(self, log: IO[str]) -> None:
        # To the very end: a full pipe would stop the server.
        for line in log:
            self._log.append(line.strip())
            if not self._port and '"listening"' in line:
                self._port = int(json.loads(line)["port"])
                self._listening.set()
        self._listening.set()

    def _last_words(self) -> str:
        return " ".join(list(self._log)[-3:]) or f"exit status {self._process.poll()}, nothing in its log"


@contextmanager
def serving(repository: Path, options: Sequence[str], *, only: Sequence[str] = ()) -> Iterator[RunningServer]:
    """Hold `vistazo serve` on `repository` with every model loaded, or only the models named."""
    with ExitStack() as stack:
        folder = str(repository.resolve())
        if only:
            folder = stack.enter_context(TemporaryDirectory(prefix="vistazo-serve-"))
            for name in only:
                (Path(folder) / name).symlink_to((repository / name).resolve(), target_is_directory=True)
        worker = stack.enter_context(Worker(ServeProcess, folder, tuple(options)))
        address, pid = worker.call(ServeProcess.wait_until_listening)
        with Client(address) as client:
            client.wait_until_ready(timeout=LOAD_SECONDS)
        command = " ".join(["vistazo serve --models", str(repository), *options])
        yield RunningServer(address, pid, command)


def choose_model(
    models: Iterable[ModelInfo], name: str, version: str = "", *, option: str = "--model"
) -> ModelInfo:
    """Return the ready model of this name, or the only one; of several versions that named, or the highest.

    option: what to blame. Raises CommandError.
    """
    ready = [model for model in models if model.ready]
    names = sorted({model.name for model in ready})
    if not name and len(names) == 1:
        name = names[0]
    versions = {model.version: model for model in ready if model.name == name}
    if not versions:
        have = ", ".join(names) or "none"
        raise CommandError(f"{option}: expected one that the server has ready ({have}), got {name!r}")
    if not version:
        return max(versions.values(), key=lambda model: int(model.version))
    if version not in versions:
        have = ", ".join(sorted(versions, key=int))
        raise CommandError(f"{option}: expected a version of {name} that is ready ({have}), got {version!r}")
    return versions[version]
