"""LatencyModel: how long one run of a batch takes, measured, not guessed."""

import bisect
from collections.abc import Mapping
from typing import Final

# Weight of a new measurement in the moving average: the last ten or so runs count, so that a neighbour
# on the machine is noticed within a second and a single hiccup is not believed.
EWMA_WEIGHT = 0.1


# A prediction on which a promise rests is stretched by this many mean deviations, as TCP's retransmission
# timer is (RFC 6298), and by no less and no more than these shares.
DEVIATIONS: Final = 4
LEAST_MARGIN: Final = 0.1
MOST_MARGIN: Final = 1.0


class LatencyModel:
    """Batch size → seconds of one run. Interpolates between measured sizes; 0.0 while nothing is measured.

    CNN inference takes nearly the same time at each run of a batch size (Gujarati et al., "Serving DNNs
    like Clockwork", OSDI 2020), so a table from warm-up, refreshed online, predicts the next run well.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._fastest: dict[int, float] = {}
        self._sizes: list[int] = []
        self._deviation = 0.0

    def set(self, batch_size: int, seconds: float) -> None:
        """Take `seconds` as the time of `batch_size`: a warm-up measurement."""
        if batch_size not in self._seconds:
            bisect.insort(self._sizes, batch_size)
        self._seconds[batch_size] = self._fastest[batch_size] = seconds

    def observe(self, batch_size: int, seconds: float) -> None:
        """Refresh the estimate with one run that was served."""
        # One run of a size that is new is as noisy as any: it starts from what the others predict.
        predicted = self.seconds(batch_size) or seconds
        fastest = min(self.fastest(batch_size) or seconds, seconds)
        self.set(batch_size, predicted + EWMA_WEIGHT * (seconds - predicted))
        self._fastest[batch_size] = fastest
        error = abs(seconds - predicted) / predicted if predicted else 0.0
        self._deviation += EWMA_WEIGHT * (error - self._deviation)

    def seconds(self, batch_size: int) -> float:
        """Return the predicted seconds of one run of `batch_size` samples; 0 samples take 0 seconds."""
        return self._interpolate(self._seconds, batch_size)

    def fastest(self, batch_size: int) -> float:
        """Return the seconds of the fastest run of `batch_size` samples so far."""
        return self._interpolate(self._fastest, batch_size)

    @property
    def margin(self) -> float:
        """The share by which to stretch a prediction, from how well the last runs were predicted."""
        return min(max(DEVIATIONS * self._deviation, LEAST_MARGIN), MOST_MARGIN)

    def table(self) -> Mapping[int, float]:
        """Return the current estimates by ascending batch size."""
        return {size: self._seconds[size] for size in self._sizes}

    def _interpolate(self, table: Mapping[int, float], batch_size: int) -> float:
        if batch_size == 0 or not self._sizes:
            return 0.0
        known = table.get(batch_size)
        if known is not None:
            return known
        at = bisect.bisect(self._sizes, batch_size)
        if at == 0:
            return table[self._sizes[0]]
        if at == len(self._sizes):
            largest = self._sizes[-1]
            return table[largest] * batch_size / largest
        low, high = self._sizes[at - 1], self._sizes[at]
        share = (batch_size - low) / (high - low)
        return table[low] + share * (table[high] - table[low])
