"""Models that are loaded when the test says so, and that tell whether they are still open."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from vistazo_server.artifact.manifest import ModelSpec
from vistazo_server.errors import ModelLoadError
from vistazo_server.repository.catalog import CatalogEntry
from vistazo_server.repository.model_repository import ModelRepository
from vistazo_server.repository.rollout import LoadedModel
from vistazo_server.repository.versions import VersionPolicy


@dataclass(eq=False)
class Instance:
    """What stands for a classifier: which version it is of, and whether it may still be asked."""

    name: str
    version: str
    sha256: str
    is_open: bool = True


class FakeModels:
    """Loads nothing, at once or when `gate` is set; keeps what was opened and what is open.

    A version in `broken` fails, with the reason given there.
    """

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken: dict[tuple[str, str], str] = {}
        self.waiting: list[tuple[str, str]] = []
        """What is being loaded, until the gate opens."""
        self.opened: list[Instance] = []
        self.most_at_once: Counter[tuple[str, str]] = Counter()

    @property
    def open_versions(self) -> list[tuple[str, str]]:
        return sorted((one.name, one.version) for one in self.opened if one.is_open)

    @asynccontextmanager
    async def load(self, path: Path, spec: ModelSpec, version: str) -> AsyncIterator[LoadedModel]:
        """Open a version, as ModelLoader does."""
        key = (spec.name, version)
        self.waiting.append(key)
        try:
            await self.gate.wait()
        finally:
            self.waiting.remove(key)
        if key in self.broken:
            raise ModelLoadError(self.broken[key])
        instance = Instance(spec.name, version, spec.model_sha256)
        self.opened.append(instance)
        self.most_at_once[key] = max(self.most_at_once[key], self.open_versions.count(key))
        try:
            await asyncio.sleep(0)
            yield LoadedModel(
                classifier=cast("Any", instance), max_batch_size=1, device="cpu", latencies=dict
            )
            await asyncio.sleep(0)
        finally:
            instance.is_open = False


class Told:
    """A RepositoryObserver that remembers."""

    def __init__(self) -> None:
        self.states: list[tuple[str, str, str, bool]] = []
        self.loads: list[tuple[str, bool]] = []
        self.gone: list[str] = []

    def state_changed(self, entry: CatalogEntry, *, serving: bool) -> None:
        self.states.append((entry.name, entry.version, entry.state.value, serving))

    def load_ended(self, model: str, *, ok: bool) -> None:
        self.loads.append((model, ok))

    def forgotten(self, model: str) -> None:
        self.gone.append(model)


@asynccontextmanager
async def repository_of(
    root: Path,
    models: FakeModels,
    *,
    policy: str = "latest:1",
    explicit: bool = True,
    told: Told | None = None,
    start: bool = True,
) -> AsyncIterator[ModelRepository]:
    """Hold a repository of the folder; with `start`, what is in it is loaded already."""
    async with ModelRepository(
        root,
        load_model=models.load,
        policy_for=lambda name: VersionPolicy.parse(policy),
        observer=told or Told(),
        explicit=explicit,
    ) as repository:
        repository.find(may_be_empty=True)
        if start:
            await repository.start()
        yield repository


def catalog(repository: ModelRepository) -> dict[tuple[str, str], str]:
    """Return the state of each model version in the catalog."""
    return {(entry.name, entry.version): entry.state.value for entry in repository.entries()}


def answering(repository: ModelRepository, version: str = "") -> str:
    """Return the version that a request of the model `tiny` would get now."""
    with repository.lease("tiny", version) as classifier:
        instance = cast("Instance", classifier)
        assert instance.is_open
        return instance.version
