"""RepositoryFolder: what lies in the model repository's folder, and whether it has changed."""

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from vistazo_server.errors import InvalidRequestError, RepositoryUnreadableError
from vistazo_server.repository.versions import is_version

FileMark = tuple[str, int, int, int, int]
"""Name, size, time of modification in ns, inode, permissions: enough to tell that a file was changed."""

Fingerprint = tuple[FileMark, ...]
"""The files of a version's folder. Equal fingerprints: nothing was changed."""

FoundVersions = Mapping[str, Fingerprint]
"""The versions of one model."""

# What a file system allows as the name of a folder; a caller's longer name cannot be one.
MAX_NAME_CHARACTERS: Final = 255


class RepositoryFolder:
    """The folder `root` with its `<name>/<version>/`. Names that begin with "." are not looked at.

    Whatever a caller names is looked up in the listing, never joined to a path: nothing outside is read.
    Every method reads the disk: not for the event loop once the server serves.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def version(self, name: str, version: str) -> Path:
        """Return the folder of a model version that was found."""
        return self.root / name / version

    def scan(self) -> dict[str, FoundVersions | None]:
        """Return the versions of each model that has any, by name; None for a model that cannot be read.

        Raises RepositoryUnreadableError when the folder itself cannot.
        """
        found: dict[str, FoundVersions | None] = {}
        for name in self._names():
            try:
                versions = _versions(self.root / name)
            except FileNotFoundError:
                continue  # removed since it was listed
            except OSError:
                found[name] = None
                continue
            if versions:
                found[name] = versions
        return found

    def scan_model(self, name: str) -> FoundVersions:
        """Return the versions of one model; none when it is not there. Raises RepositoryUnreadableError."""
        if name not in self._names():
            return {}
        try:
            return _versions(self.root / name)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise RepositoryUnreadableError(
                f"{self.root / name} cannot be read: {error.strerror or error}"
            ) from error

    def _names(self) -> list[str]:
        try:
            with os.scandir(self.root) as entries:
                # A name that is not printable is not valid UTF-8, or meant to spoil a log.
                return sorted(
                    entry.name
                    for entry in entries
                    if entry.name[0] != "." and entry.name.isprintable() and _is_folder(entry)
                )
        except OSError as error:
            raise RepositoryUnreadableError(
                f"{self.root} cannot be read: {error.strerror or error}"
            ) from error


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


def _versions(model: Path) -> dict[str, Fingerprint]:
    with os.scandir(model) as entries:
        names = [entry.name for entry in entries if is_version(entry.name) and _is_folder(entry)]
    found = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # removed since it was listed
            found[name] = _fingerprint(model / name)
    return found


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return True  # that it cannot be read shows when it is


def _fingerprint(folder: Path) -> Fingerprint:
    """Return the marks of a folder's files, by name; of what cannot be read, less."""
    marks: list[FileMark] = []
    try:
        with os.scandir(folder) as entries:
            marks += [_mark(entry) for entry in entries if entry.name[0] != "."]
    except FileNotFoundError:
        raise
    except OSError as error:
        # That it cannot be read is told by loading it; that this has changed, by the mark.
        marks.append(("", error.errno or 0, 0, 0, 0))
    return tuple(sorted(marks))


def _mark(entry: "os.DirEntry[str]") -> FileMark:
    try:
        status = entry.stat()  # of a link's target, which is what will be loaded
    except OSError as error:
        return (entry.name, -(error.errno or 1), 0, 0, 0)
    size = status.st_size if stat.S_ISREG(status.st_mode) else 0
    return (entry.name, size, status.st_mtime_ns, status.st_ino, status.st_mode)
