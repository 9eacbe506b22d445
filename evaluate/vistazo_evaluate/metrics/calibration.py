"""Calibration: whether answers of 80 % are right 80 % of the time.

Expected calibration error after Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks",
ICML 2017: 15 bins of equal width; in each the distance between the mean probability and the share that was
right; the mean of the distances, weighted by what is in the bins.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

BINS: Final = 15

# Of a thousand classes, the decisions on 50,000 images are too many to be copied at once.
_BLOCK: Final = 1 << 21


@dataclass(frozen=True, slots=True)
class Bin:
    """The answers whose probability is above `low` and at most `high`."""

    low: float
    high: float
    count: int
    probability: float | None
    """Their mean; None: there are none."""
    right: float | None
    """The share of them that was right."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far probabilities are from what they promise."""

    expected_error: float | None
    """Expected calibration error, 0 to 1; None: no answers."""
    mean_probability: float | None
    """Above the share that was right: too sure of itself; below: not sure enough."""
    right: float | None
    bins: tuple[Bin, ...]


def calibration(right: NDArray[np.bool_], probability: NDArray[np.float32]) -> Calibration:
    """Return how well the probabilities of N answers fit whether these were right.

    The curve is scikit-learn's `calibration_curve`; the counts are of its bins, ((m-1)/15, m/15].
    """
    if len(right) == 0:
        return Calibration(None, None, None, ())
    counts = np.zeros(BINS, dtype=np.int64)
    rights, sums = np.zeros(BINS), np.zeros(BINS)
    for at in range(0, len(right), _BLOCK):
        _add(right[at : at + _BLOCK], probability[at : at + _BLOCK], counts, rights, sums)
    edges = np.linspace(0, 1, BINS + 1)
    bins = tuple(
        Bin(
            float(edges[at]),
            float(edges[at + 1]),
            int(counts[at]),
            float(sums[at] / counts[at]) if counts[at] else None,
            float(rights[at] / counts[at]) if counts[at] else None,
        )
        for at in range(BINS)
    )
    filled = counts > 0
    distances = np.abs(rights[filled] - sums[filled]) / counts[filled]
    error = float(np.average(distances, weights=counts[filled]))
    return Calibration(error, float(sums.sum() / len(right)), float(rights.sum() / len(right)), bins)


def _add(
    right: NDArray[np.bool_],
    probability: NDArray[np.float32],
    counts: NDArray[np.int64],
    rights: NDArray[np.float64],
    sums: NDArray[np.float64],
) -> None:
    """Add a block of answers to the counts, the right ones and the sums of probabilities of the bins."""
    from sklearn.calibration import calibration_curve  # noqa: PLC0415 - slow to import

    # Single precision may be a hair above 1, which scikit-learn refuses.
    values = np.clip(probability.astype(np.float64), 0, 1)
    fractions, means = calibration_curve(right, values, n_bins=BINS, strategy="uniform", pos_label=True)
    found = np.bincount(np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], values), minlength=BINS)
    filled = found > 0
    counts += found
    rights[filled] += fractions * found[filled]
    sums[filled] += means * found[filled]
