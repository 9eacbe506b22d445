"""The real command, `vistazo`, in a process of its own."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VISTAZO = Path(sys.executable).with_name("vistazo")

# Starting takes two seconds on two idle cores; more on busy ones.
PATIENCE_SECONDS = 45.0

# Of the log that are kept: a soak writes hundreds a second.
MOST_LINES = 20_000


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without settings of Vistazo, and with `extra`."""
    return {k: v for k, v in os.environ.items() if not k.startswith("VISTAZO_")} | dict(extra or {})


def vistazo(*arguments: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [str(VISTAZO), *(str(argument) for argument in arguments)],
        env=environment({"COLUMNS": "120", **(env or {})}),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


class ServerProcess:
    """A running `vistazo serve`, whose log is read as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log: list[dict[str, Any]] = []
        self.other_output: list[str] = []
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue(MOST_LINES)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        listening = self.wait_for("listening")
        self.port: int = listening["port"]
        self.metrics_port: int | None = listening["metrics_port"]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def wait_for(self, event: str) -> dict[str, Any]:
        """Return the next line of the log that tells of `event`."""
        while True:
            line = self._events.get(timeout=PATIENCE_SECONDS)
            if line is None:
                raise AssertionError(
                    f"the server ended before it was {event}: {self.log} {self.other_output}"
                )
            if line["event"] == event:
                return line

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Return the exit status, once all output was read."""
        status = self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        return status

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                event = json.loads(line)
            except ValueError:
                self.other_output.append(line)
                continue
            self.log.append(event)
            if len(self.log) > MOST_LINES:
                del self.log[: MOST_LINES // 2]
            self._tell(event)
        self._tell(None)

    def _tell(self, event: dict[str, Any] | None) -> None:
        if self._events.full():
            self._events.get_nowait()
        self._events.put(event)


@contextmanager
def server_process(
    models: Path, *flags: str, env: Mapping[str, str] | None = None, ready: bool = True
) -> Iterator[ServerProcess]:
    """Hold a `vistazo serve` of `models` on free ports; with `ready`, its models are loaded already."""
    command = [str(VISTAZO), "serve", "--models", str(models), "--device", "cpu", "--log-format", "json"]
    if "VISTAZO_LISTEN" not in (env or {}):
        command += ["--listen", "127.0.0.1:0"]
    if "VISTAZO_METRICS_LISTEN" not in (env or {}):
        command += ["--metrics-listen", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, *flags],
        env=environment(env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            server = ServerProcess(process)
            if ready:
                server.wait_for("ready")
            yield server
        finally:
            if process.poll() is None:
                process.kill()
