"""RepositoryFolder: what lies in the model repository's folder, and whether it has changed."""

import contextlib
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vistazo_server.artifact.model_formats import MANIFEST_FILE, MODEL_FILE, is_clutter
from vistazo_server.errors import InvalidRequestError, RepositoryUnreadableError
from vistazo_server.repository.layout import (
    Stray,
    is_dangling,
    strays_in_model,
    strays_in_root,
    wrong_root,
)
from vistazo_server.repository.versions import is_version

FileMark = tuple[str, int, int, int, int]
"""Name, size, time of modification in ns, inode, permissions: enough to tell that a file was changed."""

Fingerprint = tuple[FileMark, ...]
"""The files of a version's folder. Equal fingerprints: nothing was changed."""

FoundVersions = Mapping[str, Fingerprint]
"""The versions of one model."""

# Files of weights may lie in a folder of their own beside the graph; deeper ones are not looked at.
_LEVELS: Final = 2

# What a file system allows as the name of a folder; a caller's longer name cannot be one.
MAX_NAME_CHARACTERS: Final = 255


def has_manifest(fingerprint: Fingerprint) -> bool:
    """Return whether a version's folder has a manifest.json."""
    return any(mark[0] == MANIFEST_FILE for mark in fingerprint)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at the folder found."""

    models: dict[str, FoundVersions | None]
    """The versions of each model that has any, by name; None for a model that cannot be read."""
    strays: tuple[Stray, ...]
    """What is not served as it lies."""


class RepositoryFolder:
    """The folder `root` with its `<name>/<version>/`.

    Names that begin with "." and those of a system's own folders are not looked at.

    Whatever a caller names is looked up in the listing, never joined to a path: nothing outside is read.
    Every method reads the disk: not for the event loop once the server serves.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def version(self, name: str, version: str) -> Path:
        """Return the folder of a model version that was found."""
        return self.root / name / version

    def scan(self) -> dict[str, FoundVersions | None]:
        """Return the models of `look`. Raises RepositoryUnreadableError."""
        return self.look().models

    def look(self) -> Seen:
        """Return what there is. Raises RepositoryUnreadableError when the folder itself cannot be read."""
        found: dict[str, FoundVersions | None] = {}
        strays: list[Stray] = []
        names, others = self._entries()
        for name in names:
            try:
                versions, strange = _look_at(self.root, name)
            except FileNotFoundError:
                continue  # removed since it was listed
            except OSError:
                found[name] = None
                continue
            strays += strange
            if versions:
                found[name] = versions
        if not found and (hint := wrong_root(self.root)):
            # Taken for a repository, what lies in it would be named as if it had to be moved.
            return Seen(found, (Stray(str(self.root), "it has no <name>/<version>/ folder", hint),))
        return Seen(found, tuple(sorted([*strays, *strays_in_root(self.root, others)])))

    def scan_model(self, name: str) -> FoundVersions:
        """Return the versions of one model; none when it is not there. Raises RepositoryUnreadableError."""
        return self.look_at(name)[0]

    def look_at(self, name: str) -> tuple[FoundVersions, list[Stray]]:
        """Return the versions of one model, and what of its folder is not served.

        Nothing when it is not there. Raises RepositoryUnreadableError.
        """
        if name not in self._entries()[0]:
            return {}, []
        try:
            return _look_at(self.root, name)
        except FileNotFoundError:
            return {}, []
        except OSError as error:
            raise RepositoryUnreadableError(
                f"{self.root / name} cannot be read: {error.strerror or error}"
            ) from error

    def _entries(self) -> tuple[list[str], list["os.DirEntry[str]"]]:
        """Return the names of folders that may be models, and what else there is."""
        names, others = [], []
        try:
            with os.scandir(self.root) as entries:
                for entry in entries:
                    if is_clutter(entry.name):
                        continue
                    # A name that is not printable is not valid UTF-8, or meant to spoil a log.
                    is_name = entry.name.isprintable() and bool(entry.name.strip())
                    if is_name and _is_folder(entry) and not is_dangling(Path(entry.path)):
                        names.append(entry.name)
                    else:
                        others.append(entry)
        except OSError as error:
            raise RepositoryUnreadableError(
                f"{self.root} cannot be read: {error.strerror or error}"
            ) from error
        return sorted(names), sorted(others, key=lambda entry: entry.name)


def check_model_name(name: str) -> str:
    """Return a caller's name of a model. Raises InvalidRequestError when no folder could be called so."""
    if not name.strip():
        raise InvalidRequestError("model: expected the name of a model, got none")
    if len(name) > MAX_NAME_CHARACTERS:
        raise InvalidRequestError(
            f"model: expected a name of at most {MAX_NAME_CHARACTERS} characters, got {len(name)}"
        )
    if name[0] == "." or "/" in name or "\\" in name or not name.isprintable():
        raise InvalidRequestError(
            "model: expected the name of a folder in the repository, without a path and not beginning with "
            f'".", got {name[:100]!r}'
        )
    return name


def _look_at(root: Path, name: str) -> tuple[FoundVersions, list[Stray]]:
    model = root / name
    with os.scandir(model) as entries:
        listed = [entry for entry in entries if not is_clutter(entry.name)]
    versions = [entry.name for entry in listed if is_version(entry.name) and _is_folder(entry)]
    files = _marks([entry for entry in listed if entry.name not in versions and not _is_folder(entry)])
    found = {}
    for version in versions:
        with contextlib.suppress(FileNotFoundError):  # removed since it was listed
            found[version] = _fingerprint(model / version, files)
    return found, strays_in_model(root, name, sorted(entry.name for entry in listed), versions)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return True  # that it cannot be read shows when it is


def _fingerprint(folder: Path, beside: list[FileMark]) -> Fingerprint:
    """Return the marks of a version's files, by name; of what cannot be read, less.

    What has no manifest is served as Triton's config.pbtxt says: then the files `beside` belong to it, too.
    """
    marks = _marks_below(folder, "", _LEVELS)
    if not {MODEL_FILE, MANIFEST_FILE} <= {mark[0] for mark in marks}:
        marks += [(f"../{name}", *rest) for name, *rest in beside]  # type: ignore[misc]
    return tuple(sorted(marks))


def _marks_below(folder: Path, path: str, levels: int) -> list[FileMark]:
    marks: list[FileMark] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            listed = [entry for entry in entries if not is_clutter(entry.name)]
            marks += _marks(listed, path)
            folders += [entry.name for entry in listed if levels > 1 and _is_folder(entry)]
    except FileNotFoundError:
        if not path:
            raise
    except OSError as error:
        # That it cannot be read is told by loading it; that this has changed, by the mark.
        marks.append((path, error.errno or 0, 0, 0, 0))
    for name in folders:
        marks += _marks_below(folder / name, f"{path}{name}/", levels - 1)
    return marks


def _marks(entries: Iterable["os.DirEntry[str]"], path: str = "") -> list[FileMark]:
    return [_mark(entry, path) for entry in entries]


def _mark(entry: "os.DirEntry[str]", path: str) -> FileMark:
    try:
        status = entry.stat()  # of a link's target, which is what will be loaded
    except OSError as error:
        return (path + entry.name, -(error.errno or 1), 0, 0, 0)
    size = status.st_size if stat.S_ISREG(status.st_mode) else 0
    return (path + entry.name, size, status.st_mtime_ns, status.st_ino, status.st_mode)
