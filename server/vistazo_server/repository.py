"""ModelRepository: finds the models of a folder, verifies them, loads them, and hands them out."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from vistazo_server.catalog import CatalogEntry, ModelState
from vistazo_server.classifier import Classifier
from vistazo_server.errors import (
    InvalidRequestError,
    ModelLoadError,
    ModelNotFoundError,
    ModelNotReadyError,
    StartupError,
)
from vistazo_server.manifest import ModelSpec, read_manifest

log = structlog.get_logger(__name__)

_HASH_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model version that answers."""

    classifier: Classifier
    max_batch_size: int
    device: str
    latencies: Callable[[], Mapping[int, float]]


LoadModel = Callable[[Path, ModelSpec, str], AbstractAsyncContextManager[LoadedModel]]
"""Opens model.onnx at the path, of the spec and version; leaving the context drains and frees it."""

OnState = Callable[[CatalogEntry], None]
"""Told each time an entry changes state."""


class ModelRepository:
    """The models below `root`, each `<name>/<version>/model.onnx` with a manifest.json.

    The highest version of each is served. Use as `async with`; leaving it closes every model.
    """

    def __init__(self, root: Path, *, load_model: LoadModel, on_state: OnState) -> None:
        self._root = root
        self._load_model = load_model
        self._on_state = on_state
        self._entries: dict[str, CatalogEntry] = {}
        self._loaded: dict[str, LoadedModel] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loaded.clear()
        await self._stack.aclose()

    def find(self) -> None:
        """Enter the highest version of each model as LOADING. Raises StartupError when there is none."""
        if not self._root.is_dir():
            raise StartupError(
                f"the model repository {self._root} is no folder; make one with "
                f"`vistazo export resnet18 --models {self._root}` or name another with --models"
            )
        for folder in sorted(self._root.iterdir()):
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            versions = [
                int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()
            ]
            if versions:
                entry = CatalogEntry(folder.name, str(max(versions)))
                self._entries[entry.name] = entry
                self._on_state(entry)
        if not self._entries:
            raise StartupError(
                f"the model repository {self._root} has no <name>/<version>/ folder; fill it with "
                f"`vistazo export resnet18 --models {self._root}`"
            )

    async def load(self) -> None:
        """Load every model that was found, one after the other; one that fails leaves the others serving.

        Raises StartupError when all failed.
        """
        for entry in self._entries.values():
            await self._load(entry)
        if not self._loaded:
            reasons = "; ".join(f"{entry.name}: {entry.reason}" for entry in self._entries.values())
            raise StartupError(f"none of the models in {self._root} could be loaded: {reasons}")

    def entries(self) -> list[CatalogEntry]:
        """Return every model version, by name."""
        return list(self._entries.values())

    def entry(self, name: str, version: str = "") -> CatalogEntry:
        """Return one model version; an empty version means the highest. Raises ModelNotFoundError."""
        entry = self._entries.get(name)
        if entry is None:
            raise ModelNotFoundError(
                f"model: {_quoted(name)} is not in the repository; it has {self._names()}"
            )
        if version not in ("", entry.version):
            raise ModelNotFoundError(
                f"version: {_quoted(version)} of {name} is not served; version {entry.version} is"
            )
        return entry

    def get(self, name: str, version: str = "") -> Classifier:
        """Return the model to ask; an empty name means the only one.

        Raises ModelNotFoundError, ModelNotReadyError, or InvalidRequestError when the name is left out and
        there are several.
        """
        if not name:
            if len(self._entries) > 1:
                raise InvalidRequestError(f"model: expected the name of one of {self._names()}, got none")
            name = next(iter(self._entries))
        entry = self.entry(name, version)
        loaded = self._loaded.get(entry.name)
        if loaded is None:
            reason = f"failed to load: {entry.reason}" if entry.state is ModelState.FAILED else "is loading"
            raise ModelNotReadyError(f"model {entry.name} {reason}")
        return loaded.classifier

    async def _load(self, entry: CatalogEntry) -> None:
        started = time.perf_counter()
        folder = self._root / entry.name / entry.version
        try:
            entry.spec = await asyncio.to_thread(_verified_spec, folder, entry.name)
            loaded = await self._stack.enter_async_context(
                self._load_model(folder / "model.onnx", entry.spec, entry.version)
            )
        except ModelLoadError as error:
            entry.state, entry.reason = ModelState.FAILED, str(error)
            log.error("model_failed", model=entry.name, version=entry.version, reason=entry.reason)  # noqa: TRY400  the reason says it all, a stack adds nothing
            self._on_state(entry)
            return
        self._loaded[entry.name] = loaded
        entry.max_batch_size, entry.device, entry.latencies = (
            loaded.max_batch_size,
            loaded.device,
            loaded.latencies,
        )
        entry.state = ModelState.READY
        if entry.spec.weights == "untrained":
            log.warning("model_untrained", model=entry.name, meaning="its answers mean nothing")
        log.info(
            "model_ready",
            model=entry.name,
            version=entry.version,
            weights=entry.spec.weights,
            precision=entry.spec.precision,
            device=entry.device,
            max_batch_size=entry.max_batch_size,
            batch_ms={size: round(seconds * 1000, 2) for size, seconds in entry.latencies().items()},
            seconds=round(time.perf_counter() - started, 3),
        )
        self._on_state(entry)

    def _names(self) -> str:
        return ", ".join(self._entries) or "no models"


def _verified_spec(folder: Path, name: str) -> ModelSpec:
    """Return the manifest of a version's folder once model.onnx proved to be the file that it describes."""
    spec = read_manifest(folder / "manifest.json", name=name)
    path = folder / "model.onnx"
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_HASH_CHUNK_BYTES):
                digest.update(chunk)
    except FileNotFoundError:
        raise ModelLoadError(f"{path} is missing; export the model again") from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from None
    if digest.hexdigest() != spec.model_sha256:
        raise ModelLoadError(
            f"{path} is not the file that its manifest describes: expected sha256 {spec.model_sha256[:12]}…, "
            f"got {digest.hexdigest()[:12]}…; export the model again"
        )
    return spec


def _quoted(name: str) -> str:
    """Return a caller's string fit for a one-line message."""
    return repr(name[:100])
