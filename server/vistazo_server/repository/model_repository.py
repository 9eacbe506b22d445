"""ModelRepository: the models of a folder: finds them, hands them out, loads and unloads them."""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import structlog

from vistazo_preprocessing.spec import JpegDecoding
from vistazo_server.errors import (
    DrainingError,
    InvalidRequestError,
    ModelControlError,
    ModelNotFoundError,
    RepositoryUnreadableError,
    ServingError,
    StartupError,
)
from vistazo_server.repository.catalog import CatalogEntry, IndexRow, ModelState
from vistazo_server.repository.disk import beside_the_loop
from vistazo_server.repository.folder import FoundVersions, RepositoryFolder, check_model_name
from vistazo_server.repository.layout import Stray, check_root, wrong_root
from vistazo_server.repository.rollout import (
    JpegDecodingFor,
    LoadModel,
    RepositoryObserver,
    Rollout,
    ServedVersion,
    all_ended,
)
from vistazo_server.repository.served_model import ServedModel
from vistazo_server.repository.versions import VersionPolicy

log = structlog.get_logger(__name__)

# A disk answers in milliseconds or, when it hangs, not at all.
SCAN_SECONDS: Final = 5.0

# Of what is not served as it lies, how much one message says.
MOST_TOLD: Final = 3

Change = Callable[[ServedModel], Coroutine[Any, Any, None]]


class ModelRepository:
    """The models below a folder, each `<name>/<version>/model.onnx` with a manifest.json.

    `policy_for` says which versions of a model are served, `jpeg_decoding_for` how its JPEGs are decoded.
    `explicit`: callers may load and unload.

    Changes of one model are made one after the other, and each ends when what it replaced is freed: at any
    time at most two instances of a version are in memory. A change goes on when the caller that asked for
    it goes. Use as `async with`; leaving it closes every model.
    """

    def __init__(
        self,
        root: Path,
        *,
        load_model: LoadModel,
        policy_for: Callable[[str], VersionPolicy],
        observer: RepositoryObserver,
        jpeg_decoding_for: JpegDecodingFor = lambda name: JpegDecoding.EXACT,  # noqa: ARG005
        explicit: bool = False,
    ) -> None:
        self._folder = RepositoryFolder(root)
        self._rollout = Rollout(
            self._folder, load_model=load_model, observer=observer, jpeg_decoding_for=jpeg_decoding_for
        )
        self._policy_for = policy_for
        self._observer = observer
        self._explicit = explicit
        self._models: dict[str, ServedModel] = {}
        self._strays: frozenset[Stray] = frozenset()
        """What is not served as it lies, as far as it was told."""
        self._unreadable: list[str] = []
        """Models that were to be loaded at the start, and whose folders could not be read."""
        self._changes: set[asyncio.Task[None]] = set()
        self._scan: asyncio.Task[dict[str, FoundVersions | None]] | None = None
        self._stopping = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop_changes()
        for model in self._models.values():
            model.abandon()
        await self._rollout.finish()

    async def stop_changes(self) -> None:
        """End the changes that are under way, and refuse others; what serves goes on serving."""
        self._stopping = True
        for task in self._changes:
            task.cancel()
        await all_ended(self._changes)
        if self._scan is not None:
            self._scan.cancel()

    # Start

    def find(self, names: Collection[str] | None = None, *, may_be_empty: bool = False) -> None:
        """Enter what is to be loaded at the start as LOADING: the models `names`, or all that there are.

        Reads the disk. Raises StartupError when a name, or everything, is missing.
        """
        root = self._folder.root
        if trouble := check_root(root):
            raise StartupError(f"the model repository {root} {trouble}")
        try:
            look = self._folder.look()
        except RepositoryUnreadableError as error:
            raise StartupError(f"the model repository {error}") from error
        seen, strays = look.models, look.strays
        if not seen and not may_be_empty:
            if len(strays) > MOST_TOLD:
                self.tell_of(strays)
            fill = f"fill it with `vistazo export resnet18 --models {root}`"
            hint = wrong_root(root) or _several(strays) or fill
            raise StartupError(f"the model repository {root} has no <name>/<version>/ folder; {hint}")
        self.tell_of(strays)
        for name in seen if names is None else names:
            if name not in seen:
                why = _several([stray for stray in strays if stray.is_in(root / name)])
                why = why or f"it has {_list(seen)}"
                raise StartupError(f"the model {_quoted(name)} is not in the repository {root}; {why}")
            versions = seen[name]
            if versions is None:
                log.error("model_unreadable", model=name)
                self._unreadable.append(name)
            else:
                self._models[name] = self._new(name)
                self._models[name].enter(versions)

    async def start(self) -> None:
        """Load what was found, one after the other; one that fails leaves the others serving.

        Raises StartupError when all failed, and the lower versions too that might have served instead.
        """

        async def load(model: ServedModel) -> None:
            if model.entries:  # else a caller has unloaded it already
                await model.follow(model.found)

        for name in list(self._models):
            await self._exclusively(name, load)
        if any(model.is_serving for model in self._models.values()):
            return
        reasons = [f"{one.name}: {one.reason}" for one in self.entries() if one.state is ModelState.FAILED]
        reasons += [f"{name}: its folder cannot be read" for name in self._unreadable]
        if reasons:
            reason = "; ".join(reasons)
            raise StartupError(f"none of the models in {self._folder.root} could be loaded: {reason}")

    def tell_of(self, strays: Collection[Stray]) -> None:
        """Name what is not served as it lies, each once for as long as it lies there."""
        for stray in sorted(set(strays) - self._strays):
            log.warning("not_served", path=stray.path, reason=stray.reason, to_serve_it=stray.to_serve_it)
        self._strays = frozenset(strays)

    # What there is

    def names(self) -> list[str]:
        """Return the names of the models that are in the catalog."""
        return [model.name for model in self._models.values() if model.entries]

    def entries(self) -> list[CatalogEntry]:
        """Return every model version in the catalog, by name and version."""
        entries = [entry for model in self._models.values() for entry in model.entries.values()]
        return sorted(entries, key=lambda entry: (entry.name, int(entry.version)))

    def entry(self, name: str, version: str = "") -> CatalogEntry:
        """Return one model version; an empty version means the highest that is ready, else the highest.

        Raises ModelNotFoundError, or ModelNotReadyError when the model is not loaded at all.
        """
        return self._known(name).entry(version)

    def lease(self, name: str, version: str = "") -> ServedVersion:
        """Return the model version to ask: `with` it gives the classifier, which then stays open.

        An empty name means the only one, an empty version the highest that is ready. Enter it before
        anything is awaited. Raises ModelNotFoundError, ModelNotReadyError, or InvalidRequestError when the
        name is left out and there are several.
        """
        return self._known(name or self._only_name()).lease(version)

    async def index(self) -> list[IndexRow]:
        """Return every model version that is loaded or could be, by name and version.

        While the disk does not answer, only those that are loaded.
        """
        # Who asks while another waits for the disk waits for the same.
        if self._scan is None or self._scan.done():
            self._scan = asyncio.create_task(beside_the_loop(self._folder.scan))
        seen: Mapping[str, FoundVersions | None] = {}
        with contextlib.suppress(RepositoryUnreadableError, TimeoutError):
            async with asyncio.timeout(SCAN_SECONDS):
                seen = await asyncio.shield(self._scan)
        rows = [_row(entry) for entry in self.entries()]
        for name, versions in seen.items():
            entries = self._models[name].entries if name in self._models else {}
            rows += [
                IndexRow(name, version, ModelState.UNAVAILABLE, "not loaded")
                for version in self._policy_for(name).choose(versions or {})
                if version not in entries
            ]
        return sorted(rows, key=lambda row: (row.name, int(row.version)))

    # Changes

    async def load(self, name: str) -> None:
        """Load the model, or what has changed of it; return when it serves and what it replaced is freed.

        Raises InvalidRequestError, ModelNotFoundError, DrainingError, or ModelControlError when a version
        failed or callers may not load.
        """
        self._check_control(name)
        await self._exclusively(name, self._load)

    async def unload(self, name: str) -> None:
        """Take the model out of service; return when its requests are answered and it is freed.

        Does nothing to a model that is not loaded. Raises InvalidRequestError, ModelNotFoundError,
        DrainingError, or ModelControlError when callers may not unload.
        """
        self._check_control(name)
        await self._exclusively(name, self._unload)

    async def follow(self, name: str, found: FoundVersions) -> None:
        """Make the model what its folder says, which has the versions `found`.

        Does nothing when it is that already, or when a change of it is under way.
        """
        model = self._models.get(name)
        if model is not None and (model.lock.locked() or not model.is_behind(found)):
            return
        await self._exclusively(name, lambda model: model.follow(found))

    async def _load(self, model: ServedModel) -> None:
        try:
            found, strays = await beside_the_loop(self._folder.look_at, model.name)
        except RepositoryUnreadableError as error:
            raise ModelControlError(str(error)) from error
        if not found:
            # What is loaded goes on serving: a folder that is gone is no wish to unload.
            raise self._not_found(model.name, because=_several(strays))
        await model.follow(found, retry=True)
        if reasons := model.failures():
            serving = f"; {model.which()} serving" if model.is_serving else ""
            raise ModelControlError(f"model {model.name} failed to load: {'; '.join(reasons)}{serving}")

    async def _unload(self, model: ServedModel) -> None:
        try:
            model.found = await beside_the_loop(self._folder.scan_model, model.name)
        except RepositoryUnreadableError:
            log.warning("model_unreadable", model=model.name)
        if not model.is_known:
            raise self._not_found(model.name)
        await model.retire()

    async def _exclusively(self, name: str, change: Change) -> None:
        """Make a change when no other change of the model is under way."""
        while True:
            if self._stopping:
                raise DrainingError("the server is draining")
            model = self._models.setdefault(name, self._new(name))
            await model.lock.acquire()
            if self._models.get(name) is model and not self._stopping:
                break
            model.lock.release()  # forgotten meanwhile: another stands for the name now

        def ended(task: asyncio.Task[None]) -> None:
            self._changes.discard(task)
            if not model.is_known:
                del self._models[name]
                self._observer.forgotten(name)
            model.lock.release()

        task = asyncio.create_task(change(model))
        self._changes.add(task)
        task.add_done_callback(ended)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and self._stopping:
                raise DrainingError("the server is draining") from None
            raise

    def _check_control(self, name: str) -> None:
        if not self._explicit:
            raise ModelControlError("callers load and unload models only with --model-control explicit")
        check_model_name(name)

    def _new(self, name: str) -> ServedModel:
        return ServedModel(name, self._policy_for(name), self._rollout)

    def _known(self, name: str) -> ServedModel:
        model = self._models.get(name)
        if model is None or not model.is_known:
            raise self._not_found(name)
        return model

    def _not_found(self, name: str, *, because: str = "") -> ServingError:
        has = f"it has {_list(self._models)}" if self._models else "no model is loaded"
        return ModelNotFoundError(f"model: {_quoted(name)} is not in the repository; {because or has}")

    def _only_name(self) -> str:
        names = self.names()
        if len(names) > 1:
            raise InvalidRequestError(f"model: expected the name of one of {_list(names)}, got none")
        if not names:
            raise ModelNotFoundError("model: no model is loaded")
        return names[0]


def _row(entry: CatalogEntry) -> IndexRow:
    failed = entry.state is ModelState.FAILED
    return IndexRow(
        entry.name, entry.version, ModelState.UNAVAILABLE if failed else entry.state, entry.reason
    )


def _list(names: Collection[str]) -> str:
    return ", ".join(names) or "no models"


def _several(strays: Collection[Stray]) -> str:
    """Return what is not served, for the end of a message; empty when there is none."""
    more = f"; and {len(strays) - MOST_TOLD} more" if len(strays) > MOST_TOLD else ""
    return "; ".join(str(stray) for stray in sorted(strays)[:MOST_TOLD]) + more


def _quoted(name: str) -> str:
    """Return a caller's string fit for a one-line message."""
    return repr(name[:100])
