"""Metrics of classes that an image may have several of, or none: each has a probability of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vistazo_evaluate.metrics.calibration import Calibration, calibration
from vistazo_evaluate.metrics.exclusive import THRESHOLDS, Averages, known
from vistazo_evaluate.metrics.shares import Share, share


@dataclass(frozen=True, slots=True)
class LabelScores:
    """One class: how well it is told from the images without it."""

    index: int
    label: str
    images: int
    """Answered images that show it."""
    answers: int
    """Images for which it is at or above the threshold."""
    average_precision: float | None
    """Over all thresholds; None: no image shows it."""
    precision: float | None
    recall: float | None
    f1: float | None
    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int


@dataclass(frozen=True, slots=True)
class LabelCoverage:
    """What remains when labels below a probability are not used."""

    threshold: float
    covered: Share
    """Of the answered images, those with a label at or above the threshold."""
    precision: float | None
    """Of all labels at or above it, the share that was right."""
    recall: float | None
    """Of all labels that the images show, the share at or above it."""


@dataclass(frozen=True, slots=True)
class MultiLabelMetrics:
    """How good the answers are, of the images that were answered."""

    threshold: float
    """From which probability on a label counts as said."""
    mean_average_precision: float | None
    """Over the classes that have images, each counted once (macro)."""
    micro: Averages
    """Over all labels of all images."""
    macro: Averages
    """Over the classes that have images, each counted once."""
    exact_match: Share
    """Images of which every label was right, and none too many."""
    hamming_loss: float | None
    """Share of wrong decisions among all, images times classes."""
    classes: tuple[LabelScores, ...]
    """Every class of the model that an image shows or an answer names, by index."""
    calibration: Calibration
    """Of all decisions, images times classes."""
    coverage: tuple[LabelCoverage, ...]


def measure(
    truth: NDArray[np.bool_], probabilities: NDArray[np.float32], labels: Sequence[str], *, threshold: float
) -> MultiLabelMetrics:
    """Return the metrics of N answered images.

    truth: N × classes, whether the image shows it. probabilities: N × classes. labels: the model's.
    """
    from sklearn.metrics import average_precision_score, hamming_loss  # noqa: PLC0415 - slow to import

    said = probabilities >= threshold
    shown = truth.any(axis=0)
    precisions = np.full(truth.shape[1], np.nan)
    for index in np.flatnonzero(shown):
        precisions[index] = average_precision_score(truth[:, index], probabilities[:, index])
    return MultiLabelMetrics(
        threshold,
        float(precisions[shown].mean()) if shown.any() else None,
        _averages(truth, said, "micro"),
        _averages(truth, said, "macro"),
        share(int((said == truth).all(axis=1).sum()), len(truth)),
        float(hamming_loss(truth, said)) if truth.size else None,
        _classes(truth, said, precisions, labels),
        calibration(truth.ravel(), probabilities.ravel()),
        tuple(_coverage(truth, probabilities, each) for each in THRESHOLDS if each > 0),
    )


def _averages(truth: NDArray[np.bool_], said: NDArray[np.bool_], average: str) -> Averages:
    from sklearn.metrics import precision_recall_fscore_support  # noqa: PLC0415

    columns = _occurring(truth) if average == "macro" else _occurring(truth | said)
    if not columns.any():
        return Averages(None, None, None)
    found = precision_recall_fscore_support(
        _indicator(truth, columns),
        _indicator(said, columns),
        average=average,
        zero_division=0,
        labels=np.arange(columns.sum()),
    )
    return Averages(*(float(each) for each in found[:3]))


def _classes(
    truth: NDArray[np.bool_], said: NDArray[np.bool_], precisions: NDArray[np.float64], labels: Sequence[str]
) -> tuple[LabelScores, ...]:
    from sklearn.metrics import multilabel_confusion_matrix, precision_recall_fscore_support  # noqa: PLC0415

    columns = _occurring(truth | said)
    if not columns.any():
        return ()
    y_true, y_pred = _indicator(truth, columns), _indicator(said, columns)
    matrices = multilabel_confusion_matrix(y_true, y_pred)
    precision, recall, f1, _ = precision_recall_fscore_support(
        y_true, y_pred, average=None, zero_division=np.nan
    )
    scores = []
    for at, index in enumerate(map(int, np.flatnonzero(columns))):
        (true_negatives, false_positives), (false_negatives, true_positives) = matrices[at].tolist()
        scores.append(
            LabelScores(
                index,
                labels[index],
                true_positives + false_negatives,
                true_positives + false_positives,
                known(precisions[index]),
                known(precision[at]),
                known(recall[at]),
                known(f1[at]),
                true_positives,
                false_positives,
                false_negatives,
                true_negatives,
            )
        )
    return tuple(scores)


def _occurring(decisions: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return for each column whether anything in it is true."""
    return np.asarray(decisions.any(axis=0), dtype=np.bool_)


def _indicator(decisions: NDArray[np.bool_], columns: NDArray[np.bool_]) -> Any:  # noqa: ANN401  scipy has no types
    """Return some columns as scikit-learn takes them: sparse, and with one of zeros more.

    It takes a single column for another kind of problem.
    """
    from scipy.sparse import csr_matrix, hstack  # noqa: PLC0415

    zeros = csr_matrix((len(decisions), 1), dtype=np.int8)
    return hstack([csr_matrix(decisions[:, columns], dtype=np.int8), zeros], format="csr")


def _coverage(
    truth: NDArray[np.bool_], probabilities: NDArray[np.float32], threshold: float
) -> LabelCoverage:
    said = probabilities >= threshold
    right = int((said & truth).sum())
    return LabelCoverage(
        threshold,
        share(int(said.any(axis=1).sum()), len(truth)),
        right / int(said.sum()) if said.any() else None,
        right / int(truth.sum()) if truth.any() else None,
    )
