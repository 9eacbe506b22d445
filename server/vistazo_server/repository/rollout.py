"""Rollout: opens and ends instances of model versions; what all models of a repository share in this."""

import asyncio
import functools
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import structlog

from vistazo_preprocessing.spec import JpegDecoding
from vistazo_server.artifact.manifest import ModelSpec
from vistazo_server.artifact.verification import verified_spec
from vistazo_server.engine import memory
from vistazo_server.inference.classifier import Classifier
from vistazo_server.repository.catalog import CatalogEntry, ModelState
from vistazo_server.repository.disk import beside_the_loop
from vistazo_server.repository.folder import Fingerprint, RepositoryFolder, has_manifest

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model version that answers."""

    classifier: Classifier
    max_batch_size: int
    device: str
    latencies: Callable[[], Mapping[int, float]]
    one_by_one: str = ""
    """Why each sample runs alone; empty: batches are fine."""


JpegDecodingFor = Callable[[str], JpegDecoding]
"""Returns how the JPEGs for a model of this name are decoded."""

LoadModel = Callable[[Path, ModelSpec, str], AbstractAsyncContextManager[LoadedModel]]
"""Opens the graph at the path, of the spec and version; leaving the context drains and frees it."""


class RepositoryObserver(Protocol):
    """Told of what becomes of the models; the server's health and metrics."""

    def state_changed(self, entry: CatalogEntry, *, serving: bool) -> None:
        """Take note of an entry's new state; `serving`: whether any version of its model answers.

        UNAVAILABLE: the entry left the catalog.
        """

    def load_ended(self, model: str, *, ok: bool) -> None:
        """Take note of an attempt to load a version of `model`."""

    def forgotten(self, model: str) -> None:
        """Take note that the model is gone from the repository."""


class ServedVersion:
    """An instance of a model version. `with` it gives its classifier, which stays open meanwhile.

    Everything happens on one event loop: who has been given it enters it in the same turn, so it is never
    entered after `close` has seen it idle.
    """

    def __init__(
        self, spec: ModelSpec, fingerprint: Fingerprint, loaded: LoadedModel, stack: AsyncExitStack
    ) -> None:
        self.spec = spec
        self.fingerprint = fingerprint
        self.loaded = loaded
        self._stack = stack
        self._users = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __enter__(self) -> Classifier:
        self._users += 1
        self._idle.clear()
        return self.loaded.classifier

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._users -= 1
        if self._users == 0:
            self._idle.set()

    async def close(self, *, hurry: asyncio.Event) -> None:
        """Wait until nobody uses it, or for `hurry`; then finish what was admitted, and free it."""
        waits = {asyncio.create_task(self._idle.wait()), asyncio.create_task(hurry.wait())}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await self._stack.aclose()
        await asyncio.to_thread(memory.give_back)


class Rollout:
    """Loads one version at a time, and ends instances so that nobody loses an answer."""

    def __init__(
        self,
        folder: RepositoryFolder,
        *,
        load_model: LoadModel,
        observer: RepositoryObserver,
        jpeg_decoding_for: JpegDecodingFor,
    ) -> None:
        self.observer = observer
        self._jpeg_decoding_for = jpeg_decoding_for
        self._folder = folder
        self._load_model = load_model
        # Warm-up measures, and two at once would measure each other.
        self._loading = asyncio.Lock()
        self._hurry = asyncio.Event()
        self._ends: set[asyncio.Task[None]] = set()

    async def open(
        self, entry: CatalogEntry, fingerprint: Fingerprint, before: ServedVersion | None
    ) -> ServedVersion | None:
        """Return a new instance of the entry's version, verified and warm, and make the entry READY.

        Returns None when the files say the same as what `before` serves. Raises ModelLoadError.
        """
        started = time.perf_counter()
        folder = self._folder.version(entry.name, entry.version)
        told = await beside_the_loop(
            functools.partial(verified_spec, folder, entry.name, needs_manifest=has_manifest(fingerprint))
        )
        spec = entry.spec = told.decoding_jpegs(self._jpeg_decoding_for(entry.name))
        if before is not None and before.spec == spec:
            return None
        async with self._loading, AsyncExitStack() as stack:
            loaded = await stack.enter_async_context(
                self._load_model(folder / spec.model_file, spec, entry.version)
            )
            await asyncio.to_thread(memory.give_back)
            served = ServedVersion(spec, fingerprint, loaded, stack.pop_all())
        entry.max_batch_size, entry.device, entry.latencies = (
            loaded.max_batch_size,
            loaded.device,
            loaded.latencies,
        )
        entry.one_by_one = loaded.one_by_one
        entry.state = ModelState.READY
        if spec.weights == "untrained":
            log.warning("model_untrained", model=entry.name, meaning="its answers mean nothing")
        log.info(
            "model_ready",
            model=entry.name,
            version=entry.version,
            weights=spec.weights,
            precision=spec.precision,
            device=entry.device,
            max_batch_size=entry.max_batch_size,
            batch_ms={size: round(seconds * 1000, 2) for size, seconds in entry.latencies().items()},
            seconds=round(time.perf_counter() - started, 3),
        )
        return served

    def path(self, name: str, version: str) -> Path:
        """Return the folder of a model version."""
        return self._folder.version(name, version)

    def close(self, served: ServedVersion) -> asyncio.Task[None]:
        """Begin to end an instance that nobody new gets; return what ends when it is freed.

        The task is never cancelled, or the instance would never be freed.
        """
        task = asyncio.create_task(served.close(hurry=self._hurry))
        self._ends.add(task)
        task.add_done_callback(self._ended)
        return task

    async def finish(self) -> None:
        """End what is being ended without waiting for who still holds it: the server takes no requests."""
        self._hurry.set()
        await all_ended(self._ends)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._ends.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("model_close_crashed", exc_info=error)


async def all_ended(tasks: Collection[asyncio.Task[None]]) -> None:
    """Return when the tasks have ended, however; who is cancelled meanwhile leaves them running."""
    if tasks:
        await asyncio.wait(tasks)
