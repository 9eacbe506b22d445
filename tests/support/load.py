"""Callers that go on in the background, and what became of their requests."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from vistazo_client import Client, VistazoError

# Between two requests of one caller: load enough to be seen, little enough for two shared cores.
PAUSE_SECONDS = 0.02


@dataclass
class Load:
    """What the callers saw so far."""

    answered: list[float] = field(default_factory=list)
    """When each request was answered, by time.monotonic()."""
    errors: list[VistazoError] = field(default_factory=list)

    def answered_since(self, instant: float) -> int:
        """Return how many requests were answered after `instant`, of time.monotonic()."""
        return sum(1 for moment in list(self.answered) if moment > instant)


@contextmanager
def background_load(
    client: Client, image: bytes, *, models: Sequence[str] = ("lenet",), callers: int = 4
) -> Iterator[Load]:
    """Hold `callers` threads that classify `image` with each of the models in turn, one request at a time."""
    load = Load()
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            for model in models:
                try:
                    client.classify(image, model=model)
                except VistazoError as error:
                    load.errors.append(error)
                else:
                    load.answered.append(time.monotonic())
            stop.wait(PAUSE_SECONDS)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        stop.set()
        for thread in threads:
            thread.join()
