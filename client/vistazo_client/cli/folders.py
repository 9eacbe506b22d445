"""Which files of a folder are images to a command."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from vistazo_client._images import image_name
from vistazo_client.errors import InvalidImageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def images_in(folder: Path, *, recursive: bool = False) -> list[Path]:
    """Return the images in `folder`, sorted by name; at least one. Raises InvalidImageError.

    They are those directly in it or, with `recursive`, at any depth below it but in hidden folders. Links to
    folders are not followed: one may lead back up.
    """
    found: list[Path] = []
    images: list[Path] = []
    try:
        for inside in _folders_below(folder) if recursive else (folder,):
            named = sorted(path for path in inside.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
            found += named
            images += [path for path in named if not is_hidden(path) and _may_be_read(path)]
    except OSError as error:
        raise InvalidImageError(f"{image_name(folder)}: cannot be read ({error.strerror})") from error
    if not images:
        others = f", but {len(found)} hidden files, folders or pipes that are named so" if found else ""
        where = "or below this folder" if recursive else "this folder"
        raise InvalidImageError(
            f"{image_name(folder)}: no images in {where} ({', '.join(IMAGE_SUFFIXES)}){others}"
        )
    return images


def _folders_below(folder: Path) -> Iterator[Path]:
    for where, folders, _ in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if not is_hidden(Path(where) / name))
        yield Path(where)


def _raise(error: OSError) -> None:
    raise error


def _may_be_read(path: Path) -> bool:
    """Return whether a file is a regular one. A pipe may never have anything to read."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return True  # which is said when it is read
    return stat.S_ISREG(mode)


def is_hidden(path: Path) -> bool:
    """Return whether a file is one that systems keep for themselves, such as macOS's ._cat.jpg."""
    attributes = getattr(path.stat(), "st_file_attributes", 0) if path.exists() else 0
    return path.name.startswith(".") or bool(attributes & stat.FILE_ATTRIBUTE_HIDDEN)
