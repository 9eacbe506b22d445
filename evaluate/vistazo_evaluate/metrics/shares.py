"""A share of images, and how sure so many images make it."""

from dataclasses import dataclass
from typing import Final

CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Share:
    """`hits` of `of`, with the 95 % interval after Wilson."""

    hits: int
    of: int
    value: float | None
    """0 to 1; None, as the interval: of nothing."""
    low: float | None
    high: float | None


def share(hits: int, of: int) -> Share:
    """Return a share and its Wilson score interval (1927), which stays within 0 and 1 for few images, too."""
    from scipy.stats import binomtest  # noqa: PLC0415 - slow to import

    if of == 0:
        return Share(hits, of, None, None, None)
    interval = binomtest(int(hits), int(of)).proportion_ci(CONFIDENCE, method="wilson")
    return Share(int(hits), int(of), hits / of, float(interval.low), float(interval.high))
