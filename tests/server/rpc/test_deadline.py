"""A call's deadline, in spite of a clock that is set meanwhile."""

import pytest

from vistazo_server.rpc import deadline


class Context:
    """What grpc says of a call's time, one answer after the other."""

    def __init__(self, *answers):
        self._answers = list(answers)

    def time_remaining(self):
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((None,), None),
        ((2.5,), 2.5),
        ((0.0,), 0.0),
        ((0.0, 9.9), 9.9),  # the clock was set forward between grpc's two looks at it
        ((86409.9, 9.9), 9.9),  # and back
        ((9.9, 0.0, 9.8), 9.8),
        ((9.9, 86409.9, 9.8), 9.8),
    ],
)
def test_the_time_that_is_left_is_what_two_answers_agree_on(answers, expected):
    assert deadline.seconds_left(Context(*answers)) == expected
