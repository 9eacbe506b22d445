"""Mapping files: what an image set calls a class → the label or index that the model has for it."""

import csv
import io
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from vistazo_client._images import image_name
from vistazo_evaluate.errors import EvaluationError

_HEADS: Final = frozenset({("name", "label"), ("folder", "label"), ("name", "class"), ("folder", "class")})


def read_mapping(path: Path) -> dict[str, str | int]:
    """Return the pairs of a .csv, .json or .toml file: a name, and a label's text or a class index.

    CSV has the two in its columns, with or without a first line that says name,label; JSON is one object,
    TOML top-level keys. Raises EvaluationError.
    """
    readers = {".csv": _read_csv, ".json": _read_json, ".toml": _read_toml}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise EvaluationError(f"{image_name(path)}: expected a mapping in .csv, .json or .toml")
    try:
        pairs = reader(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise EvaluationError(f"{image_name(path)}: cannot be read ({error.strerror})") from error
    except (ValueError, csv.Error) as error:
        raise EvaluationError(
            f"{image_name(path)}: expected a mapping from names to labels or indices, got {error}"
        ) from error
    return {name: _checked(path, name, value) for name, value in pairs.items()}


def _read_csv(text: str) -> dict[str, object]:
    rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text, newline=""), strict=True)]
    rows = [row for row in rows if any(row)]
    if rows and tuple(cell.casefold() for cell in rows[0]) in _HEADS:
        del rows[0]
    for row in rows:
        if len(row) != 2:
            raise ValueError(f"{len(row)} cells in {','.join(row)!r}, where a name and a label should be")
    return _once((row[0], row[1]) for row in rows)


def _read_json(text: str) -> dict[str, object]:
    pairs = json.loads(text, object_pairs_hook=_once)
    if not isinstance(pairs, dict):
        raise ValueError(f"a {type(pairs).__name__}, where an object should be")  # noqa: TRY004  told as the others
    return pairs


def _read_toml(text: str) -> dict[str, object]:
    return tomllib.loads(text)


def _once(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} twice")
        found[name] = value
    return found


def _checked(path: Path, name: str, value: object) -> str | int:
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise EvaluationError(
        f"{image_name(path)}: {name}: expected the text of a label or the index of a class, got {value!r}"
    )
