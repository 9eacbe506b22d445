"""Metrics of classes that exclude each other: each image shows one, and the most probable is the answer."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vistazo_evaluate.metrics.calibration import Calibration, calibration
from vistazo_evaluate.metrics.shares import Share, share

THRESHOLDS: Final = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
TOP: Final = 5


@dataclass(frozen=True, slots=True)
class ClassScores:
    """One class that occurs among the images or the answers."""

    index: int
    label: str
    images: int
    """Answered images that show it."""
    answers: int
    """How often it was the answer."""
    precision: float | None
    """Of the answers that named it, the share that was right; None: none did."""
    recall: float | None
    """Of its images, the share that was answered so; None: it has none."""
    f1: float | None
    """Their harmonic mean; None where neither is known."""


@dataclass(frozen=True, slots=True)
class Averages:
    """Over the classes that have images, each counted once; what a class lacks counts as 0."""

    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True, slots=True)
class Coverage:
    """What remains when answers below a probability are not used."""

    threshold: float
    covered: Share
    """Of the answered images, those at or above the threshold."""
    right: Share
    """Of those, the ones answered rightly."""


@dataclass(frozen=True, slots=True)
class ExclusiveMetrics:
    """How good the answers are, of the images that were answered."""

    top1: Share
    top5: Share | None
    """None with five classes or fewer, where it says nothing."""
    macro: Averages
    classes: tuple[ClassScores, ...]
    """Those that occur among the images or the answers, by index."""
    confusion: tuple[tuple[int, int, int], ...]
    """Every pair of class shown and class answered that occurs, and how often: (shown, answered, images)."""
    calibration: Calibration
    coverage: tuple[Coverage, ...]


def measure(
    truth: NDArray[np.int64],
    ranks: NDArray[np.int32],
    probabilities: NDArray[np.float32],
    labels: Sequence[str],
) -> ExclusiveMetrics:
    """Return the metrics of N answered images.

    truth: N class indices. ranks, probabilities: N × K, the most probable class first. labels: the model's.
    """
    answer = ranks[:, 0].astype(np.int64)
    probability = probabilities[:, 0]
    right = answer == truth
    top5 = None
    if len(labels) > TOP:
        # The server's order, which also says who is fifth of several that are equal.
        top5 = share(int((ranks[:, :TOP] == truth[:, None]).any(axis=1).sum()), len(truth))
    classes, macro = _classes(truth, answer, labels)
    return ExclusiveMetrics(
        share(int(right.sum()), len(right)),
        top5,
        macro,
        classes,
        _confusion(truth, answer),
        calibration(right, probability),
        tuple(_coverage(right, probability, threshold) for threshold in THRESHOLDS),
    )


def _classes(
    truth: NDArray[np.int64], answer: NDArray[np.int64], labels: Sequence[str]
) -> tuple[tuple[ClassScores, ...], Averages]:
    from sklearn.metrics import precision_recall_fscore_support  # noqa: PLC0415 - slow to import

    indices = np.union1d(truth, answer)
    if len(indices) == 0:
        return (), Averages(None, None, None)
    precision, recall, f1, images = precision_recall_fscore_support(
        truth, answer, labels=indices, average=None, zero_division=np.nan
    )
    answers = np.bincount(np.searchsorted(indices, answer), minlength=len(indices))
    scores = tuple(
        ClassScores(
            int(index),
            labels[index],
            int(images[at]),
            int(answers[at]),
            *(known(each[at]) for each in (precision, recall, f1)),
        )
        for at, index in enumerate(indices)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        macro = precision_recall_fscore_support(
            truth, answer, labels=np.unique(truth), average="macro", zero_division=0
        )[:3]
    return scores, Averages(*(float(each) for each in macro))


def known(value: float) -> float | None:
    """Return a number of scikit-learn's; None for NaN, its word for "of nothing"."""
    return None if np.isnan(value) else float(value)


def _confusion(truth: NDArray[np.int64], answer: NDArray[np.int64]) -> tuple[tuple[int, int, int], ...]:
    """Return the cells of the confusion matrix that are not 0.

    scikit-learn's own matrix would be of all classes by all classes, gigabytes for some tens of thousands.
    """
    pairs, counts = np.unique(np.stack([truth, answer], axis=1), axis=0, return_counts=True)
    return tuple(
        (int(shown), int(said), int(count)) for (shown, said), count in zip(pairs, counts, strict=True)
    )


def _coverage(right: NDArray[np.bool_], probability: NDArray[np.float32], threshold: float) -> Coverage:
    used = probability >= threshold
    return Coverage(
        threshold, share(int(used.sum()), len(right)), share(int(right[used].sum()), int(used.sum()))
    )
