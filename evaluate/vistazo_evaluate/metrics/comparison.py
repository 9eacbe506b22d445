"""Two models on the same images: where they differ, and whether chance alone would make it so."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vistazo_evaluate.metrics.shares import Share, share


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model and its baseline on the images that both answered."""

    both_right: int
    only_model_right: int
    only_baseline_right: int
    both_wrong: int
    p_value: float
    """McNemar's exact test: how often chance alone would divide the images on which one is right and the
    other wrong at least as unevenly, were both models equally good."""
    agreement: Share
    """Images with the same answer, right or wrong."""


def compare(
    right: NDArray[np.bool_], baseline_right: NDArray[np.bool_], same_answer: NDArray[np.bool_]
) -> Comparison:
    """Return how two models compare on N images that both answered.

    McNemar's test (1947) in its exact form: a binomial test, two-sided, on the discordant images. It is
    exact at any number of them, where the chi-squared form needs some 25.
    """
    from scipy.stats import binomtest  # noqa: PLC0415 - slow to import

    only_model = int((right & ~baseline_right).sum())
    only_baseline = int((~right & baseline_right).sum())
    discordant = only_model + only_baseline
    p_value = float(binomtest(only_model, discordant, 0.5).pvalue) if discordant else 1.0
    return Comparison(
        int((right & baseline_right).sum()),
        only_model,
        only_baseline,
        int((~right & ~baseline_right).sum()),
        p_value,
        share(int(same_answer.sum()), len(right)),
    )
