"""ImageNet's 1,000 classes by their WordNet ids (n02123045), in the order that every published network has.

`imagenet.tsv` has an id and its words a line. Source: the ids of ILSVRC 2012 in their order, and WordNet
3.0's words (https://wordnet.princeton.edu/license-and-commercial-use), both as timm 1.0 carries them in
timm/data/_info (imagenet_synsets.txt, imagenet_synset_to_lemma.txt).
"""

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Final

from vistazo_evaluate.names.text import plain

CLASSES: Final = 1000
_SYNSET: Final = re.compile(r"n\d{8}")

# Label lists differ in their choice of words; those of another order share next to none in their places.
_LEAST_SHARED: Final = 0.9


def is_synset(name: str) -> bool:
    """Return whether `name` is a WordNet id."""
    return _SYNSET.fullmatch(name) is not None


@cache
def _table() -> dict[str, frozenset[str]]:
    lines = (files(__package__) / "imagenet.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return {synset: frozenset(map(plain, words.split(","))) for synset, words in rows}


def synset_indices(labels: Sequence[str]) -> dict[str, int] | None:
    """Return the class of each synset for a model of these labels; None: not ImageNet's, in its order.

    A model may have a class more before the 1,000: TensorFlow's background.
    """
    before = len(labels) - CLASSES
    if before not in (0, 1):
        return None
    table = _table()
    shared = sum(
        not words.isdisjoint(map(plain, label.split(",")))
        for words, label in zip(table.values(), labels[before:], strict=True)
    )
    if shared < _LEAST_SHARED * CLASSES:
        return None
    return {synset: index + before for index, synset in enumerate(table)}
