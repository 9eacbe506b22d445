"""What the server knows about each model version: its state and what it takes and gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from vistazo_server.artifact.manifest import ModelSpec


class ModelState(Enum):
    """The life of a model version in the server."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    UNLOADING = "unloading"
    """Takes no new request, and finishes those that it has."""
    UNAVAILABLE = "unavailable"
    """Not in the catalog: unloaded, removed, or in the folder and never loaded."""


def _no_latencies() -> Mapping[int, float]:
    return {}


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One model version in the index of the repository, loaded or not."""

    name: str
    version: str
    state: ModelState
    """READY, LOADING, UNLOADING or UNAVAILABLE, as in Triton's index: what failed is unavailable."""
    reason: str
    """Why it is unavailable, in one line; empty otherwise."""


@dataclass(slots=True)
class CatalogEntry:
    """One model version, from the moment its folder was found."""

    name: str
    version: str
    state: ModelState = ModelState.LOADING
    reason: str = ""
    """Why it failed, or why its changed files do not serve, in one line."""
    spec: ModelSpec | None = None
    """None until the manifest was read."""
    max_batch_size: int = 0
    one_by_one: str = ""
    """Why each sample runs alone; empty: batches are fine, or it is not loaded."""
    device: str = ""
    latencies: Callable[[], Mapping[int, float]] = _no_latencies
    """Batch size → seconds of one run, as estimated now."""
