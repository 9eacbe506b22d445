"""What a model says of many images, kept in arrays."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vistazo_client._images import image_name
from vistazo_client.client import Client
from vistazo_client.errors import DeadlineExceededError, OverloadedError, ServerError, VistazoError
from vistazo_client.results import Classification, ModelInfo, ScoreKind
from vistazo_evaluate.errors import EvaluationError

RANKS: Final = 5
"""Of classes that exclude each other, so many of the most probable are kept."""

INDEPENDENT: Final = frozenset({ScoreKind.INDEPENDENT, ScoreKind.INDEPENDENT_LOGITS})

# After a request that failed as a whole, so many images go alone, so that one cannot take others with it.
_ALONE_AFTER_FAILURE: Final = 32
# So many failures of the server, one after the other, are no matter of single images.
_MOST_FAILURES_IN_A_ROW: Final = 8

# The two probabilities of a binary model sum to 1 but for single precision.
_ROUNDING: Final = 1e-5

# What may be the fault of one request. Anything else ends the evaluation.
_OF_A_REQUEST: Final = (DeadlineExceededError, OverloadedError, ServerError)


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that was not answered."""

    position: int
    """In the data set, from 0."""
    image: str
    reason: str


@dataclass(frozen=True, slots=True)
class Answers:
    """What one model said of each image of a data set, in its order."""

    model: ModelInfo
    answered: NDArray[np.bool_]
    """N; the rows of the others below are empty."""
    ranks: NDArray[np.int32]
    """N × K class indices, the most probable first, where classes exclude each other; else N × 0."""
    probabilities: NDArray[np.float32]
    """N × K of `ranks`; where each class has a probability of its own, N × classes, by class index."""
    failures: tuple[Failure, ...]

    @property
    def multi_label(self) -> bool:
        """Whether each class has a probability of its own."""
        return bool(self.ranks.shape[1] == 0)


def collect(
    client: Client, model: ModelInfo, paths: Sequence[Path], *, progress: Callable[[int], None]
) -> Answers:
    """Classify `paths`, in order, with exactly this version of the model; call `progress` with 1 for each.

    An image that fails is kept apart with its reason. Raises the VistazoError that means all of them, such as
    no server or no permission.
    """
    classes = len(model.labels)
    independent = model.scores in INDEPENDENT
    ranks = np.full((len(paths), 0 if independent else min(RANKS, classes)), -1, dtype=np.int32)
    width = classes if independent else ranks.shape[1]
    probabilities = np.zeros((len(paths), width), dtype=np.float32)
    answered = np.zeros(len(paths), dtype=np.bool_)
    failures: list[Failure] = []
    for position, result in enumerate(_results(client, model, paths, top_k=width)):
        progress(1)
        if result.error is not None:
            failures.append(
                Failure(position, image_name(paths[position]), _reason(result.error, paths[position]))
            )
            continue
        indices = np.fromiter((each.index for each in result.predictions), dtype=np.int32)
        values = np.fromiter((each.probability for each in result.predictions), dtype=np.float32)
        if len(indices) != width or len(np.unique(indices)) != width or indices.max(initial=0) >= classes:
            raise EvaluationError(
                f"expected {width} of the {classes} classes of {model.name}, each once, for "
                f"{image_name(paths[position])}, got {len(indices)}"
            )
        answered[position] = True
        if independent:
            probabilities[position, indices] = values
        else:
            ranks[position], probabilities[position] = indices, values
    return Answers(model, answered, ranks, probabilities, tuple(failures))


def _results(
    client: Client, model: ModelInfo, paths: Sequence[Path], *, top_k: int
) -> Iterator[Classification]:
    """Yield a result for each path, also for those whose request failed as a whole."""
    done = 0
    alone = 0
    in_a_row = 0
    while done < len(paths):
        # Requests of many images cost the server less.
        last = done + 1 if alone else len(paths)
        try:
            for result in client.classify_iter(
                paths[done:last], model=model.name, version=model.version, top_k=top_k
            ):
                in_a_row = 0
                yield result
                done += 1
            alone = max(alone - 1, 0)
        except _OF_A_REQUEST as error:
            if not alone:
                alone = _ALONE_AFTER_FAILURE
                continue
            in_a_row += 1
            if in_a_row == _MOST_FAILURES_IN_A_ROW:
                raise
            yield Classification(error=error)
            done += 1
            alone = max(alone - 1, 0)


def _reason(error: VistazoError, path: Path) -> str:
    return str(error).removeprefix(f"{image_name(path)}: ")


def is_binary(answers: Answers) -> bool:
    """Return whether the two classes are one score and what is left of 1, and so exclude each other."""
    found = answers.probabilities[answers.answered]
    sums_to_one = bool(np.all(np.abs(found.sum(axis=1) - 1) < _ROUNDING))
    return answers.multi_label and found.shape[1] == 2 and len(found) > 0 and sums_to_one


def exclusive(answers: Answers) -> Answers:
    """Return answers of independent classes as those of classes that exclude each other."""
    order = np.argsort(-answers.probabilities, axis=1, kind="stable")[:, :RANKS].astype(np.int32)
    values = np.take_along_axis(answers.probabilities, order, axis=1)
    order[~answers.answered] = -1
    return replace(answers, ranks=order, probabilities=values)
