"""The model repository on disk: staging, publishing, and what is there.

`<name>/<version>/model.onnx` and `manifest.json`, with `<name>/config.pbtxt` beside the versions. All
is written in a hidden staging folder of the same file system and appears by one rename, so a reader
sees a whole version or none, whatever kills the writer.
"""

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vistazo_export.errors import RepositoryError
from vistazo_export.interrupts import clear_in_the_end, cleared, shielded

MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
CONFIG_FILE = "config.pbtxt"
STAGING_PREFIX = ".staging-"

MOST_VERSION = (1 << 63) - 1
"""Servers have versions as int64."""

# Folders that a system makes.
_SYSTEM_FOLDERS = frozenset(
    {
        "lost+found", "@eaDir", "@Recycle", "#recycle", "__MACOSX", "__pycache__", "$RECYCLE.BIN",
        "System Volume Information",
    }
)  # fmt: skip

# A name that somebody may have meant as a version.
_VERSION_LIKE = re.compile(r"[vV]?[-+]?\d+(\.\d+)*|latest", re.ASCII)

# The server may be another user; mkdtemp gives 0700.
FOLDER_MODE = 0o755
FILE_MODE = 0o644


@dataclass(frozen=True)
class StagedModel:
    """A model being written: its own folder, not yet visible."""

    root: Path
    """The hidden folder that goes away with the staging."""
    folder: Path
    """What becomes `<name>`."""

    @property
    def version(self) -> Path:
        """The folder that becomes `<name>/<version>`."""
        return self.folder / "1"


def model_versions(model: Path) -> list[int]:
    """Return the version numbers in a model's folder, ascending."""
    if not model.is_dir():
        return []
    return sorted(int(entry.name) for entry in model.iterdir() if is_version(entry.name) and entry.is_dir())


def is_version(name: str) -> bool:
    """Return whether a folder of this name is a version: a decimal number from 1 to MOST_VERSION."""
    # isdecimal also takes other scripts' digits; a leading zero would name another folder.
    is_number = name.isascii() and name.isdecimal() and name[0] != "0"
    return is_number and len(name) <= len(str(MOST_VERSION)) and int(name) <= MOST_VERSION


def model_names(repository: Path) -> list[str]:
    """Return the names of the folders of models in a repository, sorted.

    Hidden folders and a system's own are none.
    """
    return sorted(
        entry.name
        for entry in repository.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in _SYSTEM_FOLDERS
    )


def misnamed_versions(model: Path) -> list[str]:
    """Return the names in a model's folder that may be meant as versions and are none, sorted."""
    if not model.is_dir():
        return []
    return sorted(
        entry.name
        for entry in model.iterdir()
        if _VERSION_LIKE.fullmatch(entry.name) and not (is_version(entry.name) and entry.is_dir())
    )


@contextmanager
def publishing(repository: Path) -> Iterator[None]:
    """Let nobody else publish meanwhile, so that what is looked up stays true until it is acted on.

    Not around `staging`, which would wait for itself. Raises RepositoryError where the folder cannot be
    locked.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(_locked(repository))
        except OSError as error:
            raise RepositoryError(f"cannot lock {repository}: {error.strerror or error}") from error
        yield


@contextmanager
def staging(repository: Path, name: str) -> Iterator[StagedModel]:
    """Give a place to write the model `name`; whatever is left in it at the end is deleted.

    Creates the repository if need be, and clears what killed exports left; exports that are running,
    here or in other processes, keep theirs. Raises RepositoryError where it cannot be written.
    """
    with ExitStack() as stack:
        try:
            repository.mkdir(parents=True, exist_ok=True)
            with _locked(repository):
                _clear_abandoned(repository)
                with shielded():
                    root = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=repository))
                    clear_in_the_end(root, partial(_clear, root))
                    # Deleted before the lock on it ends, so nobody else ever takes it for abandoned.
                    stack.enter_context(_locked(root))
                    stack.callback(_clear, root)
            staged = StagedModel(root, root / name)
            staged.version.mkdir(parents=True)
        except OSError as error:
            raise RepositoryError(f"cannot write to {repository}: {error.strerror or error}") from error
        yield staged


def _clear(root: Path) -> None:
    with shielded():
        shutil.rmtree(root, ignore_errors=True)
        cleared(root)


def publish(staged: StagedModel, repository: Path) -> int:
    """Make the staged model visible as the next version of its name, and return that version.

    Raises RepositoryError where it cannot; then nothing is visible that was not before.
    """
    target = repository / staged.folder.name
    try:
        for path in (staged.folder, *staged.folder.rglob("*")):
            path.chmod(FOLDER_MODE if path.is_dir() else FILE_MODE)
        if not target.exists() and _rename_into_place(staged.folder, target):
            return 1
        while True:
            version = max(model_versions(target), default=0) + 1
            if version > MOST_VERSION:
                raise RepositoryError(f"cannot publish {target}: no version is higher than {MOST_VERSION}")
            # Another export may take the number first; then the next one is ours.
            if _rename_into_place(staged.version, target / str(version)):
                break
        (staged.folder / CONFIG_FILE).replace(target / CONFIG_FILE)
    except OSError as error:
        raise RepositoryError(f"cannot publish {target}: {error.strerror or error}") from error
    return version


def repair_config(repository: Path, name: str, text: str) -> None:
    """Make `<name>/config.pbtxt` say `text`, in case an export was killed just before it was written."""
    target = repository / name / CONFIG_FILE
    if target.is_file() and target.read_text(encoding="utf-8") == text:
        return
    with staging(repository, name) as staged:
        config = staged.folder / CONFIG_FILE
        config.write_text(text, encoding="utf-8")
        config.chmod(FILE_MODE)
        config.replace(target)


def _rename_into_place(source: Path, target: Path) -> bool:
    """Rename a folder, or return False where `target` has appeared meanwhile."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
            return False
        raise
    return True


def _clear_abandoned(repository: Path) -> None:
    """Delete the staging folders whose writer is gone: those that nobody holds a lock on."""
    for folder in repository.glob(f"{STAGING_PREFIX}*"):
        try:
            with _locked(folder, wait=False):
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            # In use, gone, or of another user, who alone may look into it: it is in nobody's way.
            continue


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on `folder`, which the system releases however the process ends."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)
