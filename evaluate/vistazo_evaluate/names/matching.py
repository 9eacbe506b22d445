"""What images are called → the model's classes: by label text, by index, by synset, or by a mapping file.

The first way that fits every name is taken, and said. A name that fits nothing, or two classes, ends the
evaluation: an accuracy on labels that were guessed is worse than none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vistazo_client.errors import one_line
from vistazo_evaluate.errors import EvaluationError
from vistazo_evaluate.names.imagenet import is_synset, synset_indices
from vistazo_evaluate.names.text import LabelTexts, Likeness

# Of what differs, how much is named.
_MOST_NAMED: Final = 10


@dataclass(frozen=True, slots=True)
class Matching:
    """Which class of the model each name stands for."""

    by: str
    """"label text", "class index", "ImageNet synset" or "mapping file"."""
    said: str
    """How, in a sentence."""
    index_of: Mapping[str, int]


def match_names(
    names: Sequence[str], labels: Sequence[str], mapping: Mapping[str, str | int] | None = None
) -> Matching:
    """Return the class of each name. Raises EvaluationError, which says what differs.

    names: distinct. labels: the model's, in index order. mapping: from names to labels or indices; nothing
    else is tried when it is given.
    """
    texts = LabelTexts(labels)
    if mapping is not None:
        return _by_mapping(names, labels, texts, mapping)
    exact = {name: texts.exactly(name) for name in names}
    by_index = _indices(names, len(labels))
    if all(index is not None for index in exact.values()):
        return Matching(
            "label text",
            f"{_count(names)} matched by label text, to the letter{_and_not_by_index(exact, by_index)}.",
            {name: index for name, index in exact.items() if index is not None},
        )
    found = {name: texts.find(name) for name in names}
    if by_index is not None and not any(found.values()):
        return Matching("class index", _said_by_index(names, labels, by_index), by_index)
    synsets = synset_indices(labels) if all(map(is_synset, names)) else None
    if synsets is not None and all(name in synsets for name in names):
        return Matching(
            "ImageNet synset",
            f"{_count(names)} matched by ImageNet synset, in the order of ILSVRC 2012.",
            {name: synsets[name] for name in names},
        )
    by_text = {name: each.indices[0] for name, each in found.items() if each and len(each.indices) == 1}
    if len(by_text) == len(names):
        return Matching("label text", _said_by_text(names, texts), by_text)
    raise EvaluationError(_what_differs(names, labels, texts, by_index))


def _by_mapping(
    names: Sequence[str], labels: Sequence[str], texts: LabelTexts, mapping: Mapping[str, str | int]
) -> Matching:
    missing = [name for name in names if name not in mapping]
    if missing:
        raise EvaluationError(
            f"--mapping: expected every name of the images, got none for {_listed(missing)}"
        )
    return Matching(
        "mapping file",
        f"{_count(names)} matched by the mapping file.",
        {name: _class_of(name, mapping[name], labels, texts) for name in names},
    )


def _class_of(name: str, value: str | int, labels: Sequence[str], texts: LabelTexts) -> int:
    """Return the class that a mapping names: by its label's text first, digits else by index."""
    if isinstance(value, str):
        index = texts.exactly(value)
        found = None if index is not None else texts.find(value)
        if index is not None:
            return index
        if found is not None and len(found.indices) == 1:
            return found.indices[0]
        if found is not None:
            raise EvaluationError(
                f"--mapping: {name}: {value!r} is the label of classes {_numbers(found.indices)}; "
                "give the index of one"
            )
        if not _is_number(value):
            near = _like(texts, value)
            raise EvaluationError(f"--mapping: {name}: expected a label of the model, got {value!r}{near}")
        value = int(value)
    if not 0 <= value < len(labels):
        raise EvaluationError(
            f"--mapping: {name}: expected a class index of 0 to {len(labels) - 1}, got {value}"
        )
    return value


def _indices(names: Sequence[str], classes: int) -> dict[str, int] | None:
    """Return the names as class indices, when they are all numbers of classes that there are."""
    if not names or not all(map(_is_number, names)):
        return None
    numbers = {name: int(name) for name in names}
    return numbers if max(numbers.values()) < classes else None


def _is_number(text: str) -> bool:
    # Longer ones are no class; int() refuses the very long.
    return text.isascii() and text.isdecimal() and len(text) <= 9


def _and_not_by_index(exact: Mapping[str, int | None], by_index: Mapping[str, int] | None) -> str:
    if by_index is None or exact == by_index:
        return ""
    name = next(name for name in exact if exact[name] != by_index[name])
    return (
        f"; not by index, which would be other classes: {name} is the label of class {exact[name]} and the "
        f"index of another"
    )


def _said_by_index(names: Sequence[str], labels: Sequence[str], by_index: Mapping[str, int]) -> str:
    first = min(names, key=lambda name: by_index[name])
    label = _shown(labels[by_index[first]])
    return f"{_count(names)} matched by class index, counted from 0: {first} is {label}."


def _said_by_text(names: Sequence[str], texts: LabelTexts) -> str:
    kinds = [found.likeness for name in names if (found := texts.find(name))]
    alike, synonyms = kinds.count(Likeness.ALIKE), kinds.count(Likeness.SYNONYM)
    details = [f"{alike} but for case, spaces and underscores"] if alike else []
    details += [f"{synonyms} by one of the label's synonyms"] if synonyms else []
    return f"{_count(names)} matched by label text ({', '.join(details) or 'to the letter'})."


def _what_differs(
    names: Sequence[str], labels: Sequence[str], texts: LabelTexts, by_index: Mapping[str, int] | None
) -> str:
    """Return which names match nothing or too much, what they are closest to, and what to do."""
    found = {name: texts.find(name) for name in names}
    several = {name: each.indices for name, each in found.items() if each and len(each.indices) > 1}
    none = [name for name in names if found[name] is None]
    fitting = len(names) - len(several) - len(none)
    parts = [
        f"{fitting} of {len(names)} names of the images match one label each of the model's {len(labels)}"
    ]
    if none:
        shown = [f"{_shown(name)}{_like(texts, name)}" for name in none[:_MOST_NAMED]]
        parts.append(f"no label matches {_and_more(shown, len(none))}")
    if several:
        shown = [
            f"{_shown(name)} (classes {_numbers(several[name])})" for name in list(several)[:_MOST_NAMED]
        ]
        parts.append(f"more than one label matches {_and_more(shown, len(several))}")
    if by_index is not None:
        parts.append(
            "all names are class indices, too, but some are the text of a label: which is meant is not known"
        )
    elif all(map(_is_number, names)):
        beyond = [name for name in names if int(name) >= len(labels)]
        parts.append(f"class indices are 0 to {len(labels) - 1}, which {_listed(beyond)} is none of")
        if max(map(int, names)) == len(labels):
            parts.append("these seem to be counted from 1")
    elif any(map(is_synset, names)):
        synsets = synset_indices(labels)
        if synsets is None:
            parts.append("synsets need a model of ImageNet's 1,000 classes in their order")
        else:
            unknown = [name for name in names if name not in synsets]
            parts.append(f"of ImageNet's 1,000 synsets {_listed(unknown)} is none")
    parts.append("name the folders by label, index or synset, or say which is which with --mapping FILE")
    return "; ".join(parts)


def _like(texts: LabelTexts, name: str) -> str:
    near = texts.closest(name)
    return f" (most like {' or '.join(_shown(label) for label in near)})" if near else ""


def _listed(names: Sequence[str]) -> str:
    return _and_more([_shown(name) for name in names[:_MOST_NAMED]], len(names))


def _and_more(shown: Sequence[str], count: int) -> str:
    more = f" and {count - len(shown)} more" if count > len(shown) else ""
    return ", ".join(shown) + more


def _numbers(indices: Sequence[int]) -> str:
    return _and_more([str(index) for index in indices[:_MOST_NAMED]], len(indices))


def _count(names: Sequence[str]) -> str:
    return "1 name" if len(names) == 1 else f"{len(names)} names"


def _shown(text: str) -> str:
    return f'"{one_line(text)}"'
