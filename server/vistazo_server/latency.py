"""LatencyModel: how long one run of a batch takes, measured, not guessed."""

import bisect
from collections.abc import Mapping

# Weight of a new measurement in the moving average: the last ten or so runs count, so that a neighbour
# on the machine is noticed within a second and a single hiccup is not believed.
EWMA_WEIGHT = 0.1


class LatencyModel:
    """Batch size → seconds of one run. Interpolates between measured sizes; 0.0 while nothing is measured.

    CNN inference takes nearly the same time at each run of a batch size (Gujarati et al., "Serving DNNs
    like Clockwork", OSDI 2020), so a table from warm-up, refreshed online, predicts the next run well.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._sizes: list[int] = []

    def set(self, batch_size: int, seconds: float) -> None:
        """Take `seconds` as the time of `batch_size`: a warm-up measurement."""
        if batch_size not in self._seconds:
            bisect.insort(self._sizes, batch_size)
        self._seconds[batch_size] = seconds

    def observe(self, batch_size: int, seconds: float) -> None:
        """Refresh the estimate with one run that was served."""
        known = self._seconds.get(batch_size)
        if known is None:
            # One run of a new size is as noisy as any: start it from what the others predict.
            known = self.seconds(batch_size) or seconds
        self.set(batch_size, known + EWMA_WEIGHT * (seconds - known))

    def seconds(self, batch_size: int) -> float:
        """Return the predicted seconds of one run of `batch_size` samples; 0 samples take 0 seconds."""
        if batch_size == 0 or not self._sizes:
            return 0.0
        known = self._seconds.get(batch_size)
        if known is not None:
            return known
        at = bisect.bisect(self._sizes, batch_size)
        if at == 0:
            return self._seconds[self._sizes[0]]
        if at == len(self._sizes):
            largest = self._sizes[-1]
            return self._seconds[largest] * batch_size / largest
        low, high = self._sizes[at - 1], self._sizes[at]
        share = (batch_size - low) / (high - low)
        return self._seconds[low] + share * (self._seconds[high] - self._seconds[low])

    def table(self) -> Mapping[int, float]:
        """Return the current estimates by ascending batch size."""
        return {size: self._seconds[size] for size in self._sizes}
