"""Scores → probabilities, as the kind of the scores says."""

import numpy as np
from numpy.typing import NDArray

from vistazo_server.artifact.manifest import ScoreKind, ScoresSpec
from vistazo_server.engine.tensors import Array

Scores = NDArray[np.float32]


def probabilities(scores: Scores, spec: ScoresSpec) -> Scores:
    """Return the probability of each class, 0 to 1, of finite scores, N × classes; binary ones are N × 1."""
    if spec.is_binary:
        scores = both_classes(scores, spec.kind)
    if spec.kind is ScoreKind.LOGITS:
        return softmax(scores)
    if spec.kind is ScoreKind.INDEPENDENT_LOGITS:
        return sigmoid(scores)
    # What was rounded to few bits may leave the range by part of a step.
    within: Scores = np.minimum(np.maximum(scores, np.float32(0)), np.float32(1))
    return within


def both_classes(scores: Array, kind: ScoreKind) -> Array:
    """Return the scores of both classes, N × 2, of those of the second, N × 1."""
    first = -scores if kind is ScoreKind.INDEPENDENT_LOGITS else 1 - scores
    return np.concatenate([first, scores], axis=1)


def softmax(logits: Scores) -> Scores:
    """Return the softmax of each row; all values are finite."""
    # The ufuncs' own methods: np.max and np.sum spend more time on their arguments than on ten classes.
    exponents: Scores = np.exp(logits - np.maximum.reduce(logits, axis=1, keepdims=True))
    exponents /= np.add.reduce(exponents, axis=1, keepdims=True)
    return exponents


def sigmoid(logits: Scores) -> Scores:
    """Return the sigmoid of each value; all are finite."""
    # Of what is not positive, so that no exponential overflows and small probabilities keep their digits.
    exponents: Scores = np.exp(-np.abs(logits))
    values: Scores = np.where(logits >= 0, np.float32(1), exponents)
    values /= 1 + exponents
    return values
