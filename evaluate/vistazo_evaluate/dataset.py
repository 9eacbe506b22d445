"""Images whose labels are known: a folder with a subfolder a class, or a CSV of path and label."""

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vistazo_client._images import image_name
from vistazo_client.cli.folders import IMAGE_SUFFIXES, is_hidden
from vistazo_evaluate.errors import EvaluationError

LABEL_SEPARATOR: Final = "|"
"""Between several labels of one image. Labels of ImageNet have commas, and spreadsheets write semicolons."""

_PATH_HEADS: Final = frozenset({"path", "image", "file", "filename"})
_LABEL_HEADS: Final = frozenset({"label", "labels", "class", "classes"})

# Of what was left out or is wrong, how much is named.
_MOST_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Dataset:
    """The images, in a fixed order, and what each of them shows."""

    source: Path
    paths: tuple[Path, ...]
    names: tuple[tuple[str, ...], ...]
    """For each image the names of what it shows: of a folder one, of a CSV any number."""
    notes: tuple[str, ...] = ()
    """What was found and left out, a sentence each."""

    @property
    def distinct_names(self) -> list[str]:
        """Every name that occurs, sorted."""
        return sorted({name for names in self.names for name in names})

    @property
    def most_names(self) -> int:
        """The most names that one image has."""
        return max(map(len, self.names), default=0)


def read_dataset(source: Path, *, recursive: bool = False) -> Dataset:
    """Return the images of a folder or of a CSV; at least one. Raises EvaluationError.

    recursive: of a folder, images at any depth below a class's subfolder, too.
    """
    try:
        found = _read_folder(source, recursive=recursive) if source.is_dir() else _read_csv(source)
    except OSError as error:
        raise EvaluationError(f"{image_name(source)}: cannot be read ({error.strerror})") from error
    if not found.paths:
        raise EvaluationError(f"{image_name(source)}: {_NO_IMAGES}")
    return found


_NO_IMAGES: Final = (
    "expected a subfolder for each class with its images in it "
    f"({', '.join(IMAGE_SUFFIXES)}), or a CSV file of path and label; got no image"
)


def _read_folder(source: Path, *, recursive: bool) -> Dataset:
    paths: list[Path] = []
    names: list[tuple[str, ...]] = []
    notes: list[str] = []
    entries = sorted(entry for entry in source.iterdir() if not is_hidden(entry))
    classes = [entry for entry in entries if entry.is_dir()]
    stray = sum(entry.suffix.lower() in IMAGE_SUFFIXES for entry in entries if not entry.is_dir())
    if stray:
        notes.append(f"{stray} images beside the classes' folders belong to no class and were left out.")
    empty: list[str] = []
    deeper: list[str] = []
    for folder in classes:
        images = sorted(_images_below(folder) if recursive else _images_in(folder))
        paths += images
        names += [(folder.name,)] * len(images)
        if not images:
            empty.append(folder.name)
        if not recursive and any(entry.is_dir() and not is_hidden(entry) for entry in folder.iterdir()):
            deeper.append(folder.name)
    if empty:
        notes.append(f"No images are in {_named(empty)}: these classes were not measured.")
    if deeper:
        notes.append(
            f"Folders inside {_named(deeper)} were left out; --recursive takes the images in them, too."
        )
    return Dataset(source, tuple(paths), tuple(names), tuple(notes))


def _images_in(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path) and not path.is_dir():
            yield path


def _images_below(folder: Path) -> Iterator[Path]:
    # Links to folders are not followed: one may lead back up.
    for where, folders, _ in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(Path(where) / name)]
        yield from _images_in(Path(where))


def _read_csv(source: Path) -> Dataset:
    try:
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvaluationError(
            f"{image_name(source)}: expected a CSV file in UTF-8, got other bytes at {error.start}"
        ) from error
    paths: list[Path] = []
    names: list[tuple[str, ...]] = []
    seen: dict[Path, int] = {}
    for line, path, label in _csv_rows(source, text):
        where = f"{image_name(source)}, line {line}"
        if not path:
            raise EvaluationError(f"{where}: expected the path of an image, got an empty cell")
        image = source.parent / path
        if image in seen:
            raise EvaluationError(
                f"{where}: expected each image once, got that of line {seen[image]} again ({path}); "
                f"several labels of one image stand in one cell, with {LABEL_SEPARATOR} between them"
            )
        seen[image] = line
        paths.append(image)
        names.append(tuple(dict.fromkeys(filter(None, map(str.strip, label.split(LABEL_SEPARATOR))))))
    return Dataset(source, tuple(paths), tuple(names))


def _csv_rows(source: Path, text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the path and the label of each row that is not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    path_at, label_at, width = 0, 1, 2
    begun = False
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            heads = [cell.casefold() for cell in cells]
            if not begun and _PATH_HEADS & set(heads) and _LABEL_HEADS & set(heads):
                begun = True
                path_at = next(at for at, head in enumerate(heads) if head in _PATH_HEADS)
                label_at = next(at for at, head in enumerate(heads) if head in _LABEL_HEADS)
                width = len(cells)
                continue
            begun = True
            if len(cells) != width:
                raise EvaluationError(
                    f"{image_name(source)}, line {reader.line_num}: expected {width} cells, "
                    f'path and label among them, got {len(cells)}; a label with a comma in it stands in "…"'
                )
            yield reader.line_num, cells[path_at], cells[label_at]
    except csv.Error as error:
        raise EvaluationError(
            f"{image_name(source)}, line {reader.line_num}: expected CSV of path and label, got {error}"
        ) from error


def _named(names: list[str]) -> str:
    """Return some of the names, and how many more there are."""
    shown = ", ".join(names[:_MOST_NAMED])
    return shown if len(names) <= _MOST_NAMED else f"{shown} and {len(names) - _MOST_NAMED} more"
