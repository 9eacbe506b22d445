"""Real handwritten digits: scikit-learn's copy of the UCI set, split once for everyone.

1,797 images of 8 × 8 pixels, light digits on dark, from Alpaydin and Kaynak, "Optical Recognition of
Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

HELD_OUT_SHARE = 0.25
SPLIT_SEED = 20130


@dataclass(frozen=True)
class Digits:
    """Some of the digits, in the order of the split."""

    images: npt.NDArray[np.uint8]
    """N × 8 × 8, 0 (paper) to 255 (ink): the data set's 0 to 16 scaled and rounded."""
    labels: npt.NDArray[np.int64]
    """N digits, 0 to 9."""


def training() -> Digits:
    """Return the digits that `train_lenet` learns from."""
    return _split()[0]


def held_out() -> Digits:
    """Return the digits that no training has seen: 450, stratified by class."""
    return _split()[1]


def _split() -> tuple[Digits, Digits]:
    from sklearn.datasets import load_digits  # noqa: PLC0415 - slow to import
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    labels = data.target.astype(np.int64)
    seen, unseen = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT_SHARE, random_state=SPLIT_SEED, stratify=labels
    )
    return Digits(images[seen], labels[seen]), Digits(images[unseen], labels[unseen])
