"""LatencyModel: how long one run of a batch takes, measured, not guessed."""

import bisect
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

WEIGHT: Final = 0.1
"""Weight of one run in the averages of the pace and its deviation: the last ten or so runs count."""

ENTRY_WEIGHT: Final = 0.02
"""Weight of one run in its size's entry. What warm-up saw of a size is refined, not thrown away; and the few
runs of a change of pace that are taken for a change of that size must not bend the table."""

CLIP: Final = 2.0
"""In an average, a run counts for at most so many times as long, or as short, as was thought: one that hung
says nothing about the next."""

REMEMBERED_RUNS: Final = 7
JUMP: Final = 1.5
"""Where the median of so many last runs is off from the average pace by more than this factor, it is the
pace. What lasts is believed after four runs, on the way down as on the way up, where an average would take
dozens."""

# What a clock could not see is not taken for no time at all, from which no ratio leads back.
_LEAST_RATIO: Final = 1e-6

DEVIATIONS: Final = 4
LEAST_MARGIN: Final = 0.1
MOST_MARGIN: Final = 1.0
"""A prediction on which a promise rests is stretched by so many mean deviations of the last ten or so runs,
as TCP's retransmission timer is (RFC 6298), and by no less and no more than these shares."""


class LatencyModel:
    """Batch size → seconds of one run; 0.0 while nothing is measured.

    A table says what each size takes, and a pace how many times as long runs take of late. CNN inference
    takes nearly the same time at each run of a batch size (Gujarati et al., "Serving DNNs like Clockwork",
    OSDI 2020), so a table from warm-up predicts well; and what slows one size down (a neighbour on the
    machine, a throttled GPU) slows all, so every run says something about every size, and none is ever out of
    date.

    The table is monotone: after a run, no larger batch is thought to be faster, nor slower than in
    proportion. Any thread may read; one writes.
    """

    def __init__(self) -> None:
        # Sizes are added by replacing it whole: the thread that serves the metrics goes through it.
        self._table: dict[int, float] = {}
        self._sizes: list[int] = []
        self._runs: deque[float] = deque(maxlen=REMEMBERED_RUNS)
        """How many times as long as by the table each of the last runs took."""
        self._pace = 1.0
        self._best_pace = 1.0
        self._deviation = 0.0

    def set(self, batch_size: int, seconds: float) -> None:
        """Take `seconds` as the time of `batch_size`: a measurement at the usual pace."""
        self._replace(self._table | {batch_size: seconds})
        self._runs.clear()
        self._pace = self._best_pace = 1.0

    def observe(self, batch_size: int, seconds: float) -> None:
        """Learn from one run that was served."""
        entry = self._entry(batch_size)
        if entry <= 0.0:
            self.set(batch_size, seconds)
            return
        ratio = max(seconds / entry, _LEAST_RATIO)
        of_pace = min(max(ratio / self._pace, 1 / CLIP), CLIP)
        self._deviation += WEIGHT * (abs(of_pace - 1) - self._deviation)
        self._runs.append(ratio)
        pace, median = self._pace * (1 + WEIGHT * (of_pace - 1)), _median(self._runs)
        has_jumped = len(self._runs) > 2 and not median / JUMP <= pace <= median * JUMP
        self._pace = median if has_jumped else pace
        self._best_pace = min(self._runs)
        of_this_size = min(max(ratio / self._pace, 1 / CLIP), CLIP)
        self._learn(batch_size, entry * (1 + ENTRY_WEIGHT * (of_this_size - 1)))

    def seconds(self, batch_size: int) -> float:
        """Return the predicted seconds of one run of `batch_size` samples; 0 samples take 0 seconds."""
        return self._entry(batch_size) * self._pace

    def least(self, batch_size: int) -> float:
        """Return what one run of `batch_size` samples takes at best, by the table or by the last runs."""
        return self._entry(batch_size) * min(self._best_pace, 1.0)

    def seconds_in_batches(self, samples: int, most: int) -> float:
        """Return the predicted seconds of `samples` samples in runs of `most`, and one of the rest."""
        full, rest = divmod(samples, most)
        return full * self.seconds(most) + self.seconds(rest)

    def least_in_batches(self, samples: int, most: int) -> float:
        """Return what they take at best, by the table or by the last runs."""
        full, rest = divmod(samples, most)
        return full * self.least(most) + self.least(rest)

    @property
    def margin(self) -> float:
        """The share by which to stretch a prediction, from how well the last runs were predicted."""
        return min(max(DEVIATIONS * self._deviation, LEAST_MARGIN), MOST_MARGIN)

    def table(self) -> Mapping[int, float]:
        """Return the current estimates by ascending batch size."""
        pace = self._pace
        return {size: seconds * pace for size, seconds in self._table.items()}

    def _learn(self, batch_size: int, seconds: float) -> None:
        """Enter what a size takes, and let the other sizes follow where they contradict it."""
        if batch_size not in self._table:
            self._replace(self._table | {batch_size: self._entry(batch_size)})
        table, sizes = self._table, self._sizes
        table[batch_size] = seconds
        at = bisect.bisect_left(sizes, batch_size)
        for size in sizes[:at]:
            if table[size] > seconds:  # noqa: PLR1730  to call min for all of them takes longer than the rest
                table[size] = seconds
        for size in sizes[at + 1 :]:
            entry, most = table[size], seconds * size / batch_size
            if not seconds <= entry <= most:
                table[size] = seconds if entry < seconds else most

    def _replace(self, table: dict[int, float]) -> None:
        self._sizes = sorted(table)
        self._table = {size: table[size] for size in self._sizes}

    def _entry(self, batch_size: int) -> float:
        """Return the table's entry, interpolated between the sizes that it has."""
        sizes, table = self._sizes, self._table
        known = table.get(batch_size)
        if known is not None:
            return known
        if batch_size == 0 or not sizes:
            return 0.0
        at = bisect.bisect(sizes, batch_size)
        if at == 0:
            return table[sizes[0]]
        if at == len(sizes):
            return table[sizes[-1]] * batch_size / sizes[-1]
        low, high = sizes[at - 1], sizes[at]
        share = (batch_size - low) / (high - low)
        return table[low] + share * (table[high] - table[low])


def _median(values: Iterable[float]) -> float:
    """Return what statistics.median does, in a fifth of the time: it is asked at every run."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
