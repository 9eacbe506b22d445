"""ServedModel: the versions of one model, and how they come and go without losing a request.

1. A new or changed version is verified, loaded and warmed while the old one goes on serving.
2. It takes the old one's place in one turn of the event loop. From then on nobody new gets the old one.
3. The old one ends when everybody who got it has an answer: it refuses nobody, so no request can fail.
4. A version that fails leaves the old one serving, and its entry in the catalog says why.
5. A version without a manifest never takes the place of one that has it: it may be a copy that stands still.
6. Where there is no old one, as after a restart, the next lower version that loads serves in its place, until
   it loads itself. Which versions serve depends on what is on disk, not on what served before.
"""

import asyncio
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

import structlog

from vistazo_server.artifact.model_formats import MANIFEST_FILE
from vistazo_server.errors import ModelLoadError, ModelNotFoundError, ModelNotReadyError, one_line
from vistazo_server.repository.catalog import CatalogEntry, ModelState
from vistazo_server.repository.folder import Fingerprint, FoundVersions, has_manifest
from vistazo_server.repository.rollout import Rollout, ServedVersion, all_ended
from vistazo_server.repository.versions import VersionPolicy, newest_first

log = structlog.get_logger(__name__)

# A version that failed is tried again although its files are the same: the disk or the memory may be back.
FIRST_RETRY_SECONDS: Final = 30.0
LAST_RETRY_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A version that could not be loaded, and when to try again."""

    fingerprint: Fingerprint
    reason: str
    count: int
    retry_at: float
    """In time.monotonic's seconds."""


class ServedModel:
    """One model. Changes of it, `follow` and `retire`, must be made one after the other: hold `lock`."""

    def __init__(self, name: str, policy: VersionPolicy, rollout: Rollout) -> None:
        self.name = name
        self.lock = asyncio.Lock()
        self.entries: dict[str, CatalogEntry] = {}
        """By version: those that serve, load, failed, or are being unloaded."""
        self.found: FoundVersions = {}
        """What its folder had when it was last looked at."""
        self._policy = policy
        self._rollout = rollout
        self._observer = rollout.observer
        self._served: dict[str, ServedVersion] = {}
        self._failures: dict[str, Failure] = {}
        self._held_back: dict[str, str] = {}
        """Versions that are not taken over, and the one that each would replace."""

    @property
    def is_serving(self) -> bool:
        """Whether any version answers."""
        return bool(self._served)

    @property
    def is_known(self) -> bool:
        """Whether it is loaded in any state, or was in the repository when that was last looked at."""
        return bool(self.entries or self.found)

    def entry(self, version: str) -> CatalogEntry:
        """Return one version; empty: the highest that is ready, else the highest.

        Raises ModelNotFoundError, or ModelNotReadyError when the model is not loaded at all.
        """
        if not self.entries:
            raise ModelNotReadyError(f"model {self.name} is not loaded")
        entry = self.entries.get(version or newest_first(self._served or self.entries)[0])
        if entry is None:
            raise ModelNotFoundError(
                f"version: {version[:100]!r} of {self.name} is not served; {self.which()}"
            )
        return entry

    def lease(self, version: str) -> ServedVersion:
        """Return a version to ask; empty: the highest. Raises ModelNotFoundError or ModelNotReadyError."""
        served = self._served.get(version or max(self._served, key=int, default=""))
        if served is not None:
            return served
        entry = self.entry(version)
        what = f"version {version} of model {self.name}" if version else f"model {self.name}"
        if entry.state is ModelState.FAILED:
            raise ModelNotReadyError(f"{what} failed to load: {entry.reason}")
        raise ModelNotReadyError(f"{what} is {entry.state.value}")

    def which(self) -> str:
        """Return which versions can be asked for, as the end of a message."""
        versions = newest_first(self._served or self.entries)
        return f"version {versions[0]} is" if len(versions) == 1 else f"versions {', '.join(versions)} are"

    def failures(self) -> list[str]:
        """Return why versions that should serve do not, in one line each."""
        return [f"version {version}: {failure.reason}" for version, failure in self._failures.items()]

    def enter(self, found: FoundVersions) -> None:
        """Put what `follow` will look for in `found` into the catalog, as LOADING."""
        self.found = found
        eligible = self._eligible(found)
        for version in (*self._policy.choose(eligible), *self._policy.missing(found)):
            self._enter(CatalogEntry(self.name, version))

    def is_behind(self, found: FoundVersions) -> bool:
        """Return whether there is something to do to serve what is `found`."""
        now = time.monotonic()
        return self.found != found or any(failure.retry_at <= now for failure in self._failures.values())

    async def follow(self, found: FoundVersions, *, retry: bool = False) -> None:
        """Serve of `found` what the policy says, and end what it does not; return when that is freed.

        For each version that fails, the next lower one that loads is served until it loads itself. `retry`:
        what failed is tried again although its files are the same, and what has no manifest may replace what
        has one: somebody asked for it.
        """
        self.found = found
        missing = self._policy.missing(found)
        if retry:
            self._held_back = {}
        else:
            found = self._eligible(found)
        wanted = self._policy.choose(found)
        before = set(self._served)
        tried: list[str] = []
        replaced: list[asyncio.Task[None]] = []
        # From the highest down, until as many serve as should.
        for version in (*wanted, *self._policy.lower(found)):
            if self._serving(tried) == len(wanted):
                break
            if self._is_due(version, found[version], retry=retry):
                replaced += await self._bring(version, found[version])
            tried.append(version)
        failed = [version for version in wanted if version not in self._served]
        for version in tried[len(wanted) :]:
            if version in self._served and version not in before:
                log.warning("lower_version_serves", model=self.name, version=version, instead_of=failed)
        # Where that was not enough, what served goes on serving although its files are gone.
        spare = newest_first([version for version in self._served if version not in tried])
        keep = {*tried, *spare[: len(wanted) - self._serving(tried)]}
        keep.update(version for version in missing if version not in self._served)
        await self.retire([version for version in self.entries if version not in keep])
        for version in self._failures.keys() - {*tried, *missing}:
            del self._failures[version]
        await all_ended(replaced)
        for version in missing:
            if version not in self._served:
                self._fail(CatalogEntry(self.name, version), f"version {version} is not in the repository")

    async def retire(self, versions: Iterable[str] | None = None) -> None:
        """Take versions, or all, out of service in one turn; return when their instances are freed."""
        versions = list(self.entries if versions is None else versions)
        entries = [self.entries[version] for version in versions]
        served = self._served.keys() & set(versions)
        for entry in entries:
            entry.state = ModelState.UNLOADING
        ends = self._close(versions)
        for entry in entries:
            self._observer.state_changed(entry, serving=self.is_serving)
        await all_ended(ends)
        for entry in entries:
            del self.entries[entry.version]
            self._failures.pop(entry.version, None)
            entry.state = ModelState.UNAVAILABLE
            self._observer.state_changed(entry, serving=self.is_serving)
            if entry.version in served:
                log.info("model_unloaded", model=self.name, version=entry.version)

    def abandon(self) -> None:
        """Begin to end every instance; the catalog stays as it is."""
        self._close(list(self._served))

    def _eligible(self, found: FoundVersions) -> FoundVersions:
        """Return the versions that may serve, and tell of those that are held back.

        An image model that became one of tensors would fail all who send it images. A copy whose manifest
        has not arrived looks so, and so does one whose manifest never will.
        """
        served = {version: one.fingerprint for version, one in self._served.items()}
        whole = [
            version
            for version, files in {**self._policy.among(found), **served}.items()
            if has_manifest(files)
        ]
        held: dict[str, str] = {}
        for version, files in found.items():
            if has_manifest(files) or (version in served and version not in whole):
                continue
            if lower := [one for one in whole if int(one) <= int(version)]:
                held[version] = newest_first(lower)[0]
        eligible = {version: files for version, files in found.items() if version not in held}
        if held:
            # What would be replaced stays although its files may be gone.
            eligible |= {version: served[version] for version in held.values() if version in served}
        for version in newest_first(held.keys() - self._held_back.keys()):
            log.warning(
                "version_held_back",
                model=self.name,
                version=version,
                path=str(self._rollout.path(self.name, version)),
                reason=f"no {MANIFEST_FILE}, and it would take the place of version {held[version]} with one",
                to_serve_it=(
                    f"copy its {MANIFEST_FILE}, make one with `vistazo import --preprocess none`, or ask for "
                    "the model to be loaded with --model-control explicit"
                ),
            )
        self._held_back = held
        return eligible

    def _serving(self, versions: Iterable[str]) -> int:
        """Return how many of these versions answer."""
        return sum(version in self._served for version in versions)

    def _is_due(self, version: str, fingerprint: Fingerprint, *, retry: bool) -> bool:
        """Return whether a version is to be loaded: it is new, was changed, or may load by now."""
        served, failure = self._served.get(version), self._failures.get(version)
        if served is not None and served.fingerprint == fingerprint:
            self._recovered(version)
            return False
        same = failure is not None and failure.fingerprint == fingerprint
        return retry or not same or failure is None or failure.retry_at <= time.monotonic()

    async def _bring(self, version: str, fingerprint: Fingerprint) -> list[asyncio.Task[None]]:
        """Make a version serve as its files say; return what ends the instance that it replaced."""
        before = self._served.get(version)
        entry = CatalogEntry(self.name, version)
        if before is None:
            self._enter(entry)
        try:
            served = await self._rollout.open(entry, fingerprint, before)
        except ModelLoadError as error:
            self._fail(entry, str(error), fingerprint)
            return []
        except Exception as error:
            # Nobody waits for the load of a model that is polled: it must end as a state, not an exception.
            log.exception("model_load_crashed", model=self.name, version=version)
            reason = f"unexpected {type(error).__name__}: {one_line(error, characters=300)}"
            self._fail(entry, reason, fingerprint)
            return []
        self._recovered(version)
        if served is None:
            if before is not None:
                before.fingerprint = fingerprint
            return []
        self._observer.load_ended(self.name, ok=True)
        ends = self._close([version])
        self._served[version] = served
        self._enter(entry)
        return ends

    def _fail(self, entry: CatalogEntry, reason: str, fingerprint: Fingerprint = ()) -> None:
        """Say why a version could not be loaded; an instance of it that serves goes on serving."""
        version = entry.version
        before = self._failures.get(version)
        again = before is not None and before.fingerprint == fingerprint
        count = before.count + 1 if before is not None and again else 1
        wait = min(FIRST_RETRY_SECONDS * 2 ** min(count - 1, 10), LAST_RETRY_SECONDS)
        self._failures[version] = Failure(fingerprint, reason, count, time.monotonic() + wait)
        self._observer.load_ended(self.name, ok=False)
        if before is None or before.reason != reason:
            log.error(
                "model_failed",
                model=self.name,
                version=version,
                reason=reason,
                serving=newest_first(self._served),
            )
        if version in self._served:
            self.entries[version].reason = reason
            return
        entry.state, entry.reason = ModelState.FAILED, reason
        self._enter(entry)

    def _recovered(self, version: str) -> None:
        self._failures.pop(version, None)
        if version in self._served:
            self.entries[version].reason = ""

    def _enter(self, entry: CatalogEntry) -> None:
        self.entries[entry.version] = entry
        self._observer.state_changed(entry, serving=self.is_serving)

    def _close(self, versions: Collection[str]) -> list[asyncio.Task[None]]:
        """Let nobody new have these versions; return what ends when their instances are freed."""
        gone = [self._served.pop(version) for version in versions if version in self._served]
        return [self._rollout.close(served) for served in gone]
