"""Which labels a name may mean: by the label's text, by that but for case and spaces, or by a synonym."""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

_BETWEEN_WORDS: Final = re.compile(r"[\s_\-]+")


class Likeness(IntEnum):
    """How a name is like a label, the surest first."""

    EXACT = 0
    ALIKE = 1
    """The same but for case, spaces, underscores and hyphens."""
    SYNONYM = 2
    """One of the names that the label has with commas between them."""


@dataclass(frozen=True, slots=True)
class Found:
    """The classes that a name may mean."""

    indices: tuple[int, ...]
    likeness: Likeness
    """Of the surest."""


class LabelTexts:
    """A model's labels, to be looked up by what people call them."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self._exact: dict[str, set[int]] = {}
        self._alike: dict[str, set[int]] = {}
        self._synonyms: dict[str, set[int]] = {}
        for index, label in enumerate(labels):
            self._exact.setdefault(label, set()).add(index)
            self._alike.setdefault(plain(label), set()).add(index)
            for synonym in label.split(","):
                if plain(synonym):
                    self._synonyms.setdefault(plain(synonym), set()).add(index)

    def exactly(self, name: str) -> int | None:
        """Return the one class whose label is `name` to the letter."""
        found = self._exact.get(name, set())
        return next(iter(found)) if len(found) == 1 else None

    def find(self, name: str) -> Found | None:
        """Return every class that `name` may mean; None: there is none."""
        levels = (self._exact.get(name), self._alike.get(plain(name)), self._synonyms.get(plain(name)))
        found = {index for level in levels for index in level or ()}
        if not found:
            return None
        surest = next(kind for kind, level in zip(Likeness, levels, strict=True) if level)
        return Found(tuple(sorted(found)), surest)

    def closest(self, name: str) -> list[str]:
        """Return the labels that look most like `name`, at most two."""
        near = difflib.get_close_matches(plain(name), self._synonyms, n=2, cutoff=0.6)
        indices = dict.fromkeys(min(self._synonyms[text]) for text in near)
        return [self._labels[index] for index in indices]


def plain(text: str) -> str:
    """Return `text` without what writers differ in: case, spaces, underscores, hyphens, composed letters."""
    return _BETWEEN_WORDS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()
