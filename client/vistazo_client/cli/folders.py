"""Which files of a folder are images to a command."""

import stat
from pathlib import Path

from vistazo_client._images import image_name
from vistazo_client.errors import InvalidImageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def images_in(folder: Path) -> list[Path]:
    """Return the images directly in `folder`, sorted by name; at least one. Raises InvalidImageError."""
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        images = [path for path in found if not is_hidden(path) and not path.is_dir()]
    except OSError as error:
        raise InvalidImageError(f"{image_name(folder)}: cannot be read ({error.strerror})") from error
    if not images:
        hidden = f", but {len(found)} hidden files or folders that are named so" if found else ""
        raise InvalidImageError(
            f"{image_name(folder)}: no images in this folder ({', '.join(IMAGE_SUFFIXES)}){hidden}"
        )
    return images


def is_hidden(path: Path) -> bool:
    """Return whether a file is one that systems keep for themselves, such as macOS's ._cat.jpg."""
    attributes = getattr(path.stat(), "st_file_attributes", 0) if path.exists() else 0
    return path.name.startswith(".") or bool(attributes & stat.FILE_ATTRIBUTE_HIDDEN)
