"""Class labels in the shapes that people keep them in: one a line, numbered, JSON or Python, WordNet ids.

A file of one label a line is taken as it is. What is taken out of any other shape is said, and what does not
fit its shape is refused with its line: a label that moves by one class is a wrong answer that nobody sees.
"""

import ast
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from vistazo_export.errors import LabelsError
from vistazo_export.progress import SILENT, Progress

AS_THEY_ARE = "write them as a JSON list to have them taken as they are"

# What a number and its label are parted by; a space alone may also belong to the label, as in "7 up".
NUMBERED = re.compile(r"(?P<index>[0-9]{1,9})(?P<mark>\s+-\s+|\s*[:,;=\t]\s*|\s+)(?P<label>\S.*)")
NUMBERED_AFTER = re.compile(r"(?P<label>.*\S)\s*[,;\t]\s*(?P<index>[0-9]{1,9})")
NUMBER_ALONE = re.compile(r"(?P<index>[0-9]{1,9})\s*[:,;=\t]?")
WORDNET = re.compile(r"n[0-9]{8}(\s*[:,;\t]\s*|\s+)(?P<label>\S.*)")
WORDNET_ID = re.compile(r"n[0-9]{8}")
ASSIGNMENT = re.compile(r"\s*[A-Za-z_]\w*\s*=\s*(?=[\[{])")

# The first line of a table.
HEADER_WORDS = {"id", "index", "idx", "class", "class_id", "class_index", "class_idx", "number", "label_id"}
HEADER_WORDS |= {"label", "name", "class_name", "classname", "class_label", "labels", "names", "category"}

# Where the files of training scripts keep the labels, the first that is there.
KEYS = ("id2label", "names", "labels", "classes", "class_names", "categories", "class_to_idx", "label2id")


@dataclass(frozen=True)
class _Line:
    number: int
    text: str


class _Pairs(list[tuple[object, object]]):
    """A dict as it was written: the same key may come twice."""


def read_labels(path: Path, progress: Progress = SILENT) -> tuple[str, ...]:
    """Return the labels in the UTF-8 file at `path`, in class order, and warn of how they were read.

    Nothing is said where there is one label a line. Raises LabelsError where the file cannot be read, is
    empty, has a blank label before its end, since that would be shown to people, or is of a known shape with
    a line that does not fit it. Two classes may share a label; ImageNet has such pairs.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabelsError(f"cannot read the labels file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LabelsError(f"the labels file {path} is not UTF-8 text") from error
    labels, how = _read(path, text)
    for index, label in enumerate(labels):
        if any(unicodedata.category(character) == "Cc" and character != "\t" for character in label):
            raise LabelsError(
                f"the label of class {index} in the labels file {path} has a control character: "
                f"{label!r:.100}"
            )
    if how:
        ends = f"class 0 is {labels[0]!r}, class {len(labels) - 1} is {labels[-1]!r}"
        progress.warning(f"{path.name} is read as {how}: {ends}; {AS_THEY_ARE}")
    return labels


def _read(path: Path, text: str) -> tuple[tuple[str, ...], str]:
    """Return the labels, and how they were found in the text; "" where it has one a line."""
    if text.lstrip()[:1] in {"{", "["} or ASSIGNMENT.match(text):
        literal = _literal(path, text)
        if literal is not None:
            return _of_literal(path, literal)
    lines = [_Line(number, line.strip()) for number, line in enumerate(_split(text), 1)]
    while lines and not lines[-1].text:
        lines.pop()
    if not lines:
        raise LabelsError(f"the labels file {path} is empty; it needs one label per line")
    for line in lines:
        if not line.text:
            raise LabelsError(f"line {line.number} of the labels file {path} is blank; each line is a class")
    return _of_lines(path, lines)


# Lines


def _split(text: str) -> list[str]:
    """Return the lines as editors count them: a label may hold what str.splitlines takes for an end."""
    return re.split(r"\r\n|\r|\n", text)


def _of_lines(path: Path, lines: Sequence[_Line]) -> tuple[tuple[str, ...], str]:
    without_ids = [WORDNET.fullmatch(line.text) for line in lines]
    if all(without_ids):
        rest = [
            _Line(line.number, match["label"])
            for line, match in zip(lines, without_ids, strict=True)
            if match is not None
        ]
        labels, how = _of_lines(path, rest)
        return _unquoted(labels), f"WordNet ids and names, {how or 'the lines in class order'}"
    if sum(map(bool, without_ids)) * 2 > len(lines) > 1:
        line = next(line for line, match in zip(lines, without_ids, strict=True) if not match)
        _refuse(path, line, "is no WordNet id and name, as others are")
    for pattern, shape in ((NUMBERED, "index and name"), (NUMBERED_AFTER, "name and index")):
        rows = lines[1:] if _is_header(lines[0].text) and len(lines) > 1 else lines
        matches = [pattern.fullmatch(line.text) for line in rows]
        if all(matches):
            found = [(match["index"], match["label"]) for match in matches if match]
            hard = pattern is NUMBERED and any(match and match["mark"].strip(" ") for match in matches)
            if hard or _counts([index for index, _ in found]):
                labels, how = _numbered(path, found, [line.number for line in rows], shape)
                return _named_after_ids(labels, how)
            return tuple(
                line.text for line in lines
            ), "one label a line, each with a number that is part of it"
        numbers = [match["index"] if match else "" for match in matches]
        if pattern is NUMBERED and len(rows) > 1 and _in_order(numbers) * 2 >= len(rows):
            line = next(line for line, match in zip(rows, matches, strict=True) if not match)
            bare = NUMBER_ALONE.fullmatch(line.text)
            _refuse(path, line, "has a number and no label" if bare else "has no number, as others have")
    return tuple(line.text for line in lines), ""


def _is_header(text: str) -> bool:
    words = [word.strip().strip("\"'").lower() for word in re.split(r"[,;\t:]", text)]
    return len(words) > 1 and all(word in HEADER_WORDS for word in words)


def _counts(indexes: Iterable[str]) -> bool:
    """Say whether numbers count classes, perhaps with a gap, and are no part of their labels."""
    numbers = sorted(map(int, indexes))
    distinct, slack = len(set(numbers)) == len(numbers), 1 + len(numbers) // 10
    return distinct and numbers[0] in {0, 1} and numbers[-1] - numbers[0] < len(numbers) + slack


def _in_order(numbers: Sequence[str]) -> int:
    """Return how many lines have the number of their place, counted from 0 or 1, others counted or not."""
    present = [number for number in numbers if number]
    return max(
        sum(number == str(place) for place, number in enumerate(counted, first))
        for first in (0, 1)
        for counted in (numbers, present)
    )


def _numbered(
    path: Path, rows: Sequence[tuple[str, str]], lines: Sequence[int], shape: str
) -> tuple[tuple[str, ...], str]:
    """Return labels by their numbers, which must be complete, from 0 or from 1."""
    by_index: dict[int, str] = {}
    for (index, label), line in zip(rows, lines, strict=True):
        if int(index) in by_index:
            _refuse(path, _Line(line, f"{index} {label}"), f"has the index {int(index)} a second time")
        by_index[int(index)] = label
    first = min(by_index)
    wanted = range(first, first + len(by_index))
    if first > 1 or set(by_index) != set(wanted):
        begin = first if first < 2 else 0
        missing = next(index for index in range(begin, 1 << 30) if index not in by_index)
        after = [line for (index, _), line in zip(rows, lines, strict=True) if int(index) > missing]
        raise LabelsError(
            f"line {min(after, default=lines[-1])} of the labels file {path}: its lines are {shape}, but the "
            f"index {missing} is missing; indexes must be 0 to {len(by_index) - 1}; {AS_THEY_ARE}"
        )
    return _unquoted([by_index[index] for index in wanted]), _range(shape, first, len(by_index))


def _range(shape: str, first: int, count: int) -> str:
    """Return how numbered labels were read."""
    if first == 0:
        return f"{shape} (0 to {count - 1})"
    return f"{shape}, numbered 1 to {count} and taken as classes 0 to {count - 1}"


def _named_after_ids(labels: tuple[str, ...], how: str) -> tuple[tuple[str, ...], str]:
    """Drop WordNet ids between index and name."""
    matches = [WORDNET.fullmatch(label) for label in labels]
    if not all(matches):
        return labels, how
    return _unquoted([match["label"] for match in matches if match]), f"{how}, without their WordNet ids"


def _unquoted(labels: Iterable[str]) -> tuple[str, ...]:
    """Return labels without the quotes of a CSV file or of the lines of a dict."""
    return tuple(
        label[1:-1].replace(label[0] * 2, label[0]).strip() or label
        if len(label) > 2 and label[0] == label[-1] and label[0] in "\"'"
        else label
        for label in labels
    )


# JSON and Python


def _literal(path: Path, text: str) -> object:
    """Return the list or dict that the text is; None where it only looks as if it began like one."""
    try:
        return json.loads(text, object_pairs_hook=_Pairs)
    except RecursionError:
        raise LabelsError(f"the labels file {path} is nested too deeply to be labels") from None
    except ValueError as error:
        no_json = error
    source = ASSIGNMENT.sub("", text, count=1).strip()
    try:
        return _of_python(ast.parse(source, mode="eval").body)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        first, *others = _split(text.strip())
        # A label such as "[unused]".
        if re.fullmatch(r"\[[^\"'\[\],{}]*\]", first) and others:
            return None
        line = max(getattr(error, "lineno", None) or 1, getattr(no_json, "lineno", 1))
        raise LabelsError(
            f"line {line} of the labels file {path}, which begins as a JSON or Python list or dict, does not "
            f"go on like one: {' '.join(str(getattr(error, 'msg', error)).split())[:100]}"
        ) from error


def _of_python(node: ast.expr) -> object:
    if isinstance(node, ast.Dict):
        if None in node.keys:
            raise ValueError("** in a dict")
        keys = [ast.literal_eval(key) for key in node.keys if key is not None]
        if not all(isinstance(key, str | int) for key in keys):
            raise ValueError("keys of a dict of labels are strings or numbers")
        return _Pairs(zip(keys, map(_of_python, node.values), strict=True))
    if isinstance(node, ast.List | ast.Tuple):
        return [_of_python(item) for item in node.elts]
    literal: object = ast.literal_eval(node)
    return literal


def _of_literal(path: Path, literal: object) -> tuple[tuple[str, ...], str]:
    """Return the labels of a list or dict, and how they were found in it."""
    if isinstance(literal, _Pairs):
        return _of_pairs(path, literal)
    if isinstance(literal, list):
        if literal and all(isinstance(item, _Pairs) for item in literal):
            return _of_records(path, literal)
        items = enumerate(_some(path, literal))
        return tuple(_name(path, item, f"item {place}") for place, item in items), "a list"
    raise LabelsError(f"the labels file {path} is a {type(literal).__name__}, not a list or dict of labels")


def _of_pairs(path: Path, pairs: _Pairs) -> tuple[tuple[str, ...], str]:
    _some(path, pairs)
    keys = [key for key, _ in pairs]
    inner: dict[object, object] = {}
    for key, value in pairs:
        if key in inner:
            raise LabelsError(f"the labels file {path} is a dict that has {key!r} twice")
        inner[key] = value
    for key in KEYS:
        if isinstance(inner.get(key), list):
            labels, how = _of_literal(path, inner[key])
            return labels, f"{how} under {key}"
    if all(_is_index(key) for key in keys):
        return _of_indexes(path, [(str(key), value) for key, value in pairs], "index and name")
    if all(_is_index(value) for _, value in pairs):
        return _of_indexes(path, [(str(value), key) for key, value in pairs], "name and index")
    if all(isinstance(key, str) and WORDNET_ID.fullmatch(key) for key in keys):
        # A dict promises no order, but the classes of ImageNet are those of its ids.
        names = [(str(key), value) for key, value in pairs]
        if names != sorted(names, key=lambda pair: pair[0]):
            raise LabelsError(
                f"the labels file {path} is a dict by WordNet id, not in their order: give indexes"
            )
        return tuple(_name(path, value, key) for key, value in names), "WordNet ids and names, in their order"
    odd = next(key for key in keys if not _is_index(key))
    raise LabelsError(
        f"the labels file {path} is a dict, but {str(odd)[:60]!r} is no class index; expected such as "
        '{"0": "cat", "1": "dog"}, {"cat": 0, "dog": 1} or one with id2label'
    )


def _of_records(path: Path, records: Iterable[_Pairs]) -> tuple[tuple[str, ...], str]:
    """Return the labels of a list such as COCO's categories: dicts with an id and a name."""
    rows = []
    for record in map(dict, records):
        index = next((record[key] for key in ("id", "index", "class_id") if key in record), None)
        name = next((record[key] for key in ("name", "label", "class_name") if key in record), None)
        if not _is_index(index):
            raise LabelsError(f"the labels file {path} is a list with an item that has no id and name")
        rows.append((str(index), name))
    return _of_indexes(path, rows, "a list of ids and names")


def _of_indexes(path: Path, rows: Sequence[tuple[str, object]], shape: str) -> tuple[tuple[str, ...], str]:
    found: dict[int, str] = {}
    for index, value in rows:
        if int(index) in found:
            raise LabelsError(f"the labels file {path} has the index {int(index)} twice")
        found[int(index)] = _name(path, value, f"index {int(index)}")
    first = min(found)
    missing = next(index for index in range(min(first, 1), 1 << 30) if index not in found)
    if missing <= max(found):
        raise LabelsError(
            f"the labels file {path} is a dict or list of {shape}, but the index {missing} is missing; "
            f"indexes must be 0 to {len(found) - 1}"
        )
    return tuple(found[index] for index in sorted(found)), _range(f"a dict of {shape}", first, len(found))


def _some(path: Path, content: Sequence[object]) -> Sequence[object]:
    if not content:
        raise LabelsError(f"the labels file {path} is an empty list or dict")
    return content


def _is_index(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | str):
        return False
    return bool(re.fullmatch(r"[0-9]{1,9}", str(value)))


def _name(path: Path, value: object, where: str) -> str:
    """Return one label of a list or dict; of Keras's pairs of WordNet id and name, the name."""
    if isinstance(value, list) and len(value) == 2 and WORDNET_ID.fullmatch(str(value[0])):
        value = value[1]
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise LabelsError(f"the labels file {path}: {where} is {str(value)[:60]!r}, which is no label")
    return str(value).strip()


def _refuse(path: Path, line: _Line, why: str) -> NoReturn:
    raise LabelsError(
        f"line {line.number} of the labels file {path} {why}: {line.text[:60]!r}; {AS_THEY_ARE}"
    )
