"""Images that fail, requests that fail, and what is kept of the answers."""

from pathlib import Path

import numpy as np
import pytest

from vistazo_client.errors import (
    DeadlineExceededError,
    InvalidImageError,
    OverloadedError,
    PermissionDeniedError,
    ServerError,
)
from vistazo_client.results import Classification, ModelInfo, ModelState, Prediction, ScoreKind
from vistazo_evaluate.answers import collect, exclusive, is_binary
from vistazo_evaluate.errors import EvaluationError

PER_REQUEST = 4
LABELS = tuple("abcdefg")


class Scripted:
    """A client whose requests carry a few images, and fail as a whole when one of them says so."""

    def __init__(self, failing):
        self.failing = failing
        self.requests = []

    def classify_iter(self, images, *, model, version, top_k):
        assert (model, version) == ("m", "3")
        for at in range(0, len(images), PER_REQUEST):
            request = images[at : at + PER_REQUEST]
            self.requests.append(len(request))
            for path in request:
                error = self.failing.get(int(path.stem))
                if error is not None and not isinstance(error, InvalidImageError):
                    raise error
            for path in request:
                yield self.answer(path, top_k)

    def answer(self, path, top_k):
        error = self.failing.get(int(path.stem))
        if error is not None:
            return Classification(error=error)
        first = int(path.stem) % len(LABELS)
        order = [first, *(index for index in range(len(LABELS)) if index != first)]
        return Classification(tuple(Prediction(index, LABELS[index], 0.1) for index in order[:top_k]))


def model(scores=ScoreKind.LOGITS):
    return ModelInfo("m", "3", ModelState.READY, labels=LABELS, scores=scores)


def paths(count):
    return [Path(f"{number}.jpg") for number in range(count)]


def asked(client, count, **fields):
    seen = []
    answers = collect(client, model(**fields), paths(count), progress=seen.append)
    assert sum(seen) == count
    return answers


def test_the_five_most_probable_are_kept_in_the_servers_order():
    answers = asked(Scripted({}), 10)

    assert answers.answered.all()
    assert answers.ranks.shape == answers.probabilities.shape == (10, 5)
    assert list(answers.ranks[:, 0]) == [number % 7 for number in range(10)]


def test_an_image_that_fails_is_kept_apart_and_moves_no_other():
    answers = asked(Scripted({3: InvalidImageError("3.jpg: no image")}), 10)

    assert [(each.position, each.image, each.reason) for each in answers.failures] == [
        (3, "3.jpg", "no image")
    ]
    assert list(np.flatnonzero(~answers.answered)) == [3]
    assert answers.ranks[3, 0] == -1
    assert list(answers.ranks[[2, 4], 0]) == [2, 4]


@pytest.mark.parametrize("error", [DeadlineExceededError("late"), OverloadedError("full"), ServerError("oh")])
def test_a_request_that_fails_as_a_whole_costs_only_the_image_that_made_it_fail(error):
    client = Scripted({13: error})
    answers = asked(client, 60)

    assert [each.position for each in answers.failures] == [13]
    assert list(answers.ranks[answers.answered, 0]) == [n % 7 for n in range(60) if n != 13]
    # Alone for a while, then in company again.
    assert client.requests.count(PER_REQUEST) > 5


def test_many_images_that_fail_alone_are_all_named():
    failing = {number: DeadlineExceededError("late") for number in (0, 1, 17, 40, 41, 59)}

    assert [each.position for each in asked(Scripted(failing), 60).failures] == sorted(failing)


def test_a_server_that_fails_every_time_ends_the_evaluation():
    failing = {number: OverloadedError("full") for number in range(60)}
    client = Scripted(failing)

    with pytest.raises(OverloadedError):
        asked(client, 60)
    assert len(client.requests) < 12


def test_what_means_all_images_ends_the_evaluation_at_once():
    client = Scripted({5: PermissionDeniedError("not for you")})

    with pytest.raises(PermissionDeniedError):
        asked(client, 60)
    assert len(client.requests) == 2


def test_independent_probabilities_are_kept_by_class():
    answers = asked(Scripted({}), 3, scores=ScoreKind.INDEPENDENT)

    assert answers.multi_label
    assert answers.probabilities.shape == (3, 7)


def test_an_answer_of_fewer_classes_than_asked_for_is_no_answer():
    class Short(Scripted):
        def answer(self, path, top_k):
            return super().answer(path, top_k - 1)

    with pytest.raises(EvaluationError, match="5 of the 7 classes of m, each once, for 0"):
        asked(Short({}), 1)


def test_two_probabilities_that_sum_to_one_are_one_choice():
    two = ModelInfo("m", "3", ModelState.READY, labels=("no", "yes"), scores=ScoreKind.INDEPENDENT)

    class Binary(Scripted):
        def answer(self, path, top_k):
            p = int(path.stem) / 10
            return Classification((Prediction(1, "yes", p), Prediction(0, "no", 1 - p)))

    answers = collect(Binary({}), two, paths(11), progress=lambda _: None)

    assert is_binary(answers)
    chosen = exclusive(answers)
    assert list(chosen.ranks[:, 0]) == [0] * 6 + [1] * 5
    assert chosen.probabilities[1, 0] == pytest.approx(0.9)


def test_two_probabilities_that_do_not_are_two_labels():
    answers = asked(Scripted({}), 3, scores=ScoreKind.INDEPENDENT)

    assert not is_binary(answers)
