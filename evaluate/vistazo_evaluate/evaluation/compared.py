"""A model and its baseline on the same images."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vistazo_client._images import image_name
from vistazo_evaluate.dataset import Dataset
from vistazo_evaluate.errors import EvaluationError
from vistazo_evaluate.evaluation.judge import Answer, Judged
from vistazo_evaluate.metrics.comparison import Comparison, compare


@dataclass(frozen=True, slots=True)
class Difference:
    """An image of which two models say something different."""

    position: int
    image: str
    truth: tuple[str, ...]
    model: tuple[Answer, ...]
    model_right: bool
    baseline: tuple[Answer, ...]
    baseline_right: bool


@dataclass(frozen=True, slots=True)
class Compared:
    """A model beside its baseline."""

    baseline: Judged
    comparison: Comparison
    differences: tuple[Difference, ...]
    """Every image with another answer: where the model is wrong and the baseline right first."""
    only_model_answered: int
    only_baseline_answered: int


def compare_models(model: Judged, baseline: Judged, dataset: Dataset) -> Compared:
    """Compare two models on the images that both answered. Raises EvaluationError where they cannot be."""
    if model.multi_label != baseline.multi_label:
        raise EvaluationError(
            f"--baseline: {model.model.name} and {baseline.model.name} cannot be compared: the classes of "
            "one exclude each other, those of the other do not"
        )
    both = model.answers.answered & baseline.answers.answered
    if not both.any():
        raise EvaluationError("--baseline: no image was answered by both models")
    same = _same_answers(model, baseline)
    return Compared(
        baseline,
        compare(model.right[both], baseline.right[both], same[both]),
        tuple(_differences(model, baseline, dataset, np.flatnonzero(both & ~same))),
        int((model.answers.answered & ~both).sum()),
        int((baseline.answers.answered & ~both).sum()),
    )


def _same_answers(model: Judged, baseline: Judged) -> NDArray[np.bool_]:
    """Return for each image whether both said the same: the same label, where indices mean other classes."""
    if model.model.labels != baseline.model.labels:
        return np.array(
            [
                {answer.label for answer in model.said(at)} == {answer.label for answer in baseline.said(at)}
                for at in range(len(model.right))
            ],
            dtype=np.bool_,
        )
    if not model.multi_label:
        same: NDArray[np.bool_] = model.answers.ranks[:, 0] == baseline.answers.ranks[:, 0]
        return same
    said = model.answers.probabilities >= model.threshold
    agreed: NDArray[np.bool_] = (said == (baseline.answers.probabilities >= baseline.threshold)).all(axis=1)
    return agreed


def _differences(
    model: Judged, baseline: Judged, dataset: Dataset, positions: NDArray[np.int64]
) -> Iterator[Difference]:
    # Losses first, then gains, then what both got wrong in their own ways.
    rank = np.where(~model.right & baseline.right, 0, np.where(model.right & ~baseline.right, 1, 2))
    for position in positions[np.argsort(rank[positions], kind="stable")]:
        at = int(position)
        yield Difference(
            at,
            image_name(dataset.paths[at]),
            model.shown(at),
            model.said(at),
            bool(model.right[at]),
            baseline.said(at),
            bool(baseline.right[at]),
        )
