"""Figures: what was measured, what was wanted, and how far the rounds were apart."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import monotonic
from typing import Literal


@dataclass(frozen=True, slots=True)
class Spread:
    """The same figure from several rounds."""

    median: float
    low: float
    high: float
    rounds: int


def spread(values: Sequence[float]) -> Spread:
    """Return the median, minimum and maximum; NaN without values. NaN among them: a round that failed."""
    good = [value for value in values if not math.isnan(value)]
    if not good:
        return Spread(math.nan, math.nan, math.nan, 0)
    return Spread(median(good), min(good), max(good), len(good))


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result table."""

    name: str
    measured: float | None
    """None: could not be measured, and `note` says why."""
    unit: str = ""
    """"×", "ms", "%", "images/s", "MB"; the measured value is in it."""
    line: int | None = None
    """Which line of the standard set it belongs to."""
    target: float | None = None
    """None: nothing was promised."""
    better: Literal["higher", "lower"] = "higher"
    low: float | None = None
    """Of the rounds."""
    high: float | None = None
    note: str = ""
    detail: dict[str, object] = field(default_factory=dict)
    """What it was made from; plain values for the JSON."""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none, or nothing to hold against it."""
        if self.target is None or self.measured is None or math.isnan(self.measured):
            return None
        return self.measured >= self.target if self.better == "higher" else self.measured <= self.target


def ratio_figure(
    name: str,
    values: Sequence[float],
    *,
    unit: str = "×",
    scale: float = 1.0,
    line: int | None = None,
    target: float | None = None,
    better: Literal["higher", "lower"] = "higher",
    note: str = "",
    detail: dict[str, object] | None = None,
) -> Figure:
    """Return the figure for one value per round: their median, with the least and the greatest."""
    over = spread([value * scale for value in values])
    return Figure(
        name,
        None if over.rounds == 0 else over.median,
        unit,
        line,
        target,
        better,
        None if over.rounds == 0 else over.low,
        None if over.rounds == 0 else over.high,
        note if over.rounds else f"no round gave a value; {note}".rstrip("; "),
        {**(detail or {}), "rounds": [value * scale for value in values]},
    )


def rounds(most: int, seconds: float) -> Iterator[int]:
    """Yield 0, 1, 2 … up to `most` times, ending early when another round like the last would pass `seconds`.

    There is always one.
    """
    started = monotonic()
    for number in range(most):
        begun = monotonic()
        yield number
        now = monotonic()
        if now - started + (now - begun) > seconds:
            return
