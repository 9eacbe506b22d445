"""A model's answers against what the images show."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vistazo_client._images import image_name
from vistazo_client.client import Client
from vistazo_client.results import ModelInfo
from vistazo_evaluate.answers import INDEPENDENT, Answers, collect, exclusive, is_binary
from vistazo_evaluate.dataset import LABEL_SEPARATOR, Dataset
from vistazo_evaluate.errors import EvaluationError
from vistazo_evaluate.metrics.exclusive import ExclusiveMetrics
from vistazo_evaluate.metrics.exclusive import measure as measure_exclusive
from vistazo_evaluate.metrics.multi_label import MultiLabelMetrics
from vistazo_evaluate.metrics.multi_label import measure as measure_multi_label
from vistazo_evaluate.names.matching import Matching, match_names


@dataclass(frozen=True, slots=True)
class Answer:
    """A label that was said of an image."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Mistake:
    """An image that was answered wrongly."""

    position: int
    """In the data set, from 0."""
    image: str
    truth: tuple[str, ...]
    """The labels that it shows."""
    answers: tuple[Answer, ...]
    """The label that was said, or of a multi-label model those at or above the threshold."""
    wrongness: float
    """How sure the model was of what is wrong, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One model, measured."""

    model: ModelInfo
    matching: Matching
    answers: Answers
    truth: NDArray[np.int64] | NDArray[np.bool_]
    """N class indices; of a multi-label model N × classes, whether the image shows it."""
    right: NDArray[np.bool_]
    """N: answered, and rightly; of a multi-label model with every label right."""
    metrics: ExclusiveMetrics | MultiLabelMetrics
    threshold: float
    """From which probability on a label of a multi-label model counts as said."""
    labels: tuple[str, ...]
    """The model's, with the index behind those that several classes have."""
    notes: tuple[str, ...]

    @property
    def multi_label(self) -> bool:
        """Whether an image may show several classes, or none."""
        return self.answers.multi_label

    def said(self, position: int) -> tuple[Answer, ...]:
        """Return what the model said of an image; of one that was not answered, nothing."""
        if not self.answers.answered[position]:
            return ()
        values = self.answers.probabilities[position]
        if not self.multi_label:
            return (Answer(self.labels[self.answers.ranks[position, 0]], float(values[0])),)
        above = np.flatnonzero(values >= self.threshold)
        return tuple(
            Answer(self.labels[index], float(values[index])) for index in above[np.argsort(-values[above])]
        )

    def shown(self, position: int) -> tuple[str, ...]:
        """Return the labels of what an image shows."""
        truth = np.atleast_1d(self.truth[position])
        indices = np.flatnonzero(truth) if self.multi_label else truth
        return tuple(self.labels[index] for index in indices)

    def mistakes(self, dataset: Dataset) -> Iterator[Mistake]:
        """Yield every image that was answered wrongly, the surest mistakes first."""
        wrong = np.flatnonzero(self.answers.answered & ~self.right)
        wrongness = self._wrongness(wrong)
        for at in np.argsort(-wrongness, kind="stable"):
            position = int(wrong[at])
            yield Mistake(
                position,
                image_name(dataset.paths[position]),
                self.shown(position),
                self.said(position),
                float(wrongness[at]),
            )

    def _wrongness(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        values = self.answers.probabilities[positions]
        if not self.multi_label:
            return values[:, 0]
        truth = self.truth[positions].astype(np.bool_)
        wrong = (values >= self.threshold) != truth
        distance: NDArray[np.float32] = np.where(wrong, np.abs(values - truth), 0).max(axis=1, initial=0)
        return distance.astype(np.float32)


def match(
    model: ModelInfo, dataset: Dataset, mapping: Mapping[str, str | int] | None, *, who: str
) -> Matching:
    """Return which class each name of the data set is for the model, before any image is sent.

    who: what the model is called in messages. Raises EvaluationError for labels that do not fit.
    """
    if not model.labels:
        raise EvaluationError(f"{who}: {model.name} has no labels and no classes: it is no classifier")
    if model.scores not in INDEPENDENT:
        for path, names in zip(dataset.paths, dataset.names, strict=True):
            if len(names) != 1:
                raise EvaluationError(
                    f"{who}: the classes of {model.name} exclude each other, but {image_name(path)} has "
                    f"{len(names)} labels ({f' {LABEL_SEPARATOR} '.join(names) or 'none'})"
                )
    try:
        return match_names(dataset.distinct_names, model.labels, mapping)
    except EvaluationError as error:
        raise EvaluationError(f"{who}: {error}") from error


def judge(
    client: Client,
    model: ModelInfo,
    dataset: Dataset,
    matching: Matching,
    *,
    threshold: float,
    progress: Callable[[int], None],
) -> Judged:
    """Classify every image and measure the answers. Raises VistazoError."""
    answers = collect(client, model, dataset.paths, progress=progress)
    if not answers.answered.any():
        raise EvaluationError(
            f"{model.name} answered none of {len(dataset.paths)} images; the first: "
            f"{answers.failures[0].image}: {answers.failures[0].reason}"
        )
    notes = []
    if all(len(names) == 1 for names in dataset.names) and is_binary(answers):
        answers = exclusive(answers)
        notes.append(
            f"{model.name} is binary: its two probabilities sum to 1, so its classes are taken to exclude "
            "each other."
        )
    elif answers.multi_label and dataset.most_names == 1:
        notes.append(
            f"{model.name} is multi-label and each image has one label: it is taken to show no other class."
        )
    if model.untrained:
        notes.append(
            f"The weights of {model.name} are UNTRAINED: its answers mean nothing, and no figure here does."
        )
    truth = _truth(dataset, matching, len(model.labels), multi_label=answers.multi_label)
    kept = answers.answered
    metrics: ExclusiveMetrics | MultiLabelMetrics
    if answers.multi_label:
        shown = truth.astype(np.bool_, copy=False)
        right = ((answers.probabilities >= threshold) == shown).all(axis=1) & kept
        metrics = measure_multi_label(
            shown[kept], answers.probabilities[kept], model.labels, threshold=threshold
        )
    else:
        indices = truth.astype(np.int64, copy=False)
        right = (answers.ranks[:, 0] == indices) & kept
        metrics = measure_exclusive(
            indices[kept], answers.ranks[kept], answers.probabilities[kept], model.labels
        )
    return Judged(
        model, matching, answers, truth, right, metrics, threshold, _told_apart(model.labels), tuple(notes)
    )


def _truth(
    dataset: Dataset, matching: Matching, classes: int, *, multi_label: bool
) -> NDArray[np.int64] | NDArray[np.bool_]:
    if not multi_label:
        return np.array([matching.index_of[names[0]] for names in dataset.names], dtype=np.int64)
    shown = np.zeros((len(dataset.paths), classes), dtype=np.bool_)
    for position, names in enumerate(dataset.names):
        shown[position, [matching.index_of[name] for name in names]] = True
    return shown


def _told_apart(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the labels, with their index where several classes have the same: ImageNet has two cranes."""
    counts = Counter(labels)
    return tuple(f"{label} ({at})" if counts[label] > 1 else label for at, label in enumerate(labels))
