"""For each way in which one caller can be bad: a steady good caller beside it keeps its answers.

How long it waits is measured by `make strangers`; here it is held to bounds that no busy machine breaks.
"""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from strangers.attacks import ATTACKS
from strangers.trial import Arena, Trial, arena

pytestmark = [pytest.mark.slow, pytest.mark.serial]

SECONDS = 2.0
"""Of each attack."""
RATE = 25.0
"""Requests a second of the good caller: what it loses in a second shows, and it leaves the machine alone."""
MEDIAN_SECONDS = 1.5
"""Half of its answers come sooner. An attack lasts 2 s: who has to wait for its end waits longer."""


class Arenas:
    """One server for all attacks, until one of them leaves it the worse: the next then gets a new one."""

    def __init__(self, make_folder) -> None:
        self._make_folder = make_folder
        self._stack = ExitStack()
        self._arena: Arena | None = None

    def trial(self, attack) -> Trial:
        if self._arena is None:
            self._arena = self._stack.enter_context(arena(self._make_folder(), rate=RATE, seconds=SECONDS))
        settled = False
        try:
            trial = self._arena.trial(attack)
            settled = trial.settled
        finally:
            if not settled:
                self.close()
        return trial

    def close(self) -> None:
        self._arena = None
        self._stack.close()


@pytest.fixture(scope="module")
def arenas(tmp_path_factory) -> Iterator[Arenas]:
    arenas = Arenas(lambda: tmp_path_factory.mktemp("strangers"))
    yield arenas
    arenas.close()


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_good_caller_keeps_its_answers_beside(attack, arenas):
    trial = arenas.trial(attack)

    assert trial.beside.sent > RATE * SECONDS / 2
    assert trial.findings == []
    assert (trial.beside.lost, trial.beside.wrong) == (0, 0)
    assert trial.beside.percentile(50) < MEDIAN_SECONDS
