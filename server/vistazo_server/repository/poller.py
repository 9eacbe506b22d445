"""RepositoryPoller: looks at the repository's folder from time to time and lets the models follow it."""

import asyncio
from collections.abc import Callable

import structlog

from vistazo_server.errors import RepositoryUnreadableError, ServingError
from vistazo_server.repository.disk import beside_the_loop
from vistazo_server.repository.folder import FoundVersions, RepositoryFolder
from vistazo_server.repository.layout import Stray
from vistazo_server.repository.model_repository import ModelRepository

log = structlog.get_logger(__name__)


class RepositoryPoller:
    """Makes the models what the folder says.

    A change counts when two looks in a row see the same: what is being copied, or taken away and put back,
    is left alone meanwhile. A folder that cannot be read, or has nothing any more (an unmounted disk leaves
    an empty folder), changes nothing: what is loaded goes on serving.
    """

    def __init__(
        self, folder: RepositoryFolder, repository: ModelRepository, *, on_readable: Callable[[float], None]
    ) -> None:
        self._folder = folder
        self._repository = repository
        self._on_readable = on_readable
        self._before: dict[str, FoundVersions | None] | None = None
        self._strays_before: frozenset[Stray] | None = None
        self._trouble = ""
        self._unreadable: set[str] = set()
        self._follows: set[asyncio.Task[None]] = set()

    async def run(self, interval: float) -> None:
        """Look every `interval` seconds until cancelled."""
        while True:
            await asyncio.sleep(interval)
            try:
                await self.poll()
            except Exception:
                # A bug here must not end the watching for good.
                log.exception("poll_crashed")

    async def poll(self) -> None:
        """Look once, and begin the changes that are due; they go on when this has returned."""
        try:
            look = await beside_the_loop(self._folder.look)
        except RepositoryUnreadableError as error:
            self._is_in_trouble(str(error))
            return
        seen = look.models
        if not seen and self._repository.names():
            self._is_in_trouble(f"{self._folder.root} has no models any more")
            return
        self._is_fine()
        before, self._before = self._before, seen
        strays_before, self._strays_before = self._strays_before, frozenset(look.strays)
        if strays_before is not None:
            # What is being copied may look strange on the way, too.
            self._repository.tell_of(strays_before & self._strays_before)
        self._tell_of_unreadable({name for name, versions in seen.items() if versions is None})
        if before is None:
            return
        for name in {*seen, *self._repository.names()}:
            versions = seen.get(name, {})
            if versions is not None and versions == before.get(name, {}):
                self._follow(name, versions)

    def _follow(self, name: str, versions: FoundVersions) -> None:
        # Each for itself: one model's slow drain must not hold up the others.
        task = asyncio.create_task(self._repository.follow(name, versions))
        self._follows.add(task)
        task.add_done_callback(self._followed)

    def _followed(self, task: asyncio.Task[None]) -> None:
        self._follows.discard(task)
        if task.cancelled() or isinstance(task.exception(), ServingError | None):
            return
        log.error("model_change_crashed", exc_info=task.exception())

    def _is_in_trouble(self, trouble: str) -> None:
        self._before = None
        self._on_readable(0)
        if trouble != self._trouble:
            self._trouble = trouble
            log.error("repository_unreadable", reason=trouble, meaning="what is loaded goes on serving")

    def _is_fine(self) -> None:
        self._on_readable(1)
        if self._trouble:
            self._trouble = ""
            log.info("repository_readable")

    def _tell_of_unreadable(self, names: set[str]) -> None:
        for name in sorted(names - self._unreadable):
            log.error("model_unreadable", model=name, meaning="what is loaded of it goes on serving")
        self._unreadable = names
