"""The best classes of scores: their indexes, and as Triton's classification writes them."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vistazo_server.engine.tensors import Array
from vistazo_server.inference.side_thread import Steps

# Classes are written as text so many at a time, in 0.5 ms.
_CLASSES_A_STEP: Final = 512

# Below this many classes, sorting all of them is faster than looking for those that need sorting.
_FEW_CLASSES: Final = 64


def top_classes(values: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Return, for each row of `values`, the indexes of its k largest.

    The largest first, equal ones by lower index. `values` is N × classes, the answer N × k.
    """
    if values.shape[1] <= _FEW_CLASSES:
        return np.argsort(-values, axis=1, kind="stable")[:, :k]
    best = np.empty((len(values), k), dtype=np.intp)
    for row, into in zip(values, best, strict=True):
        # Only the values from the k-th largest up need sorting; ties with it stay in, in index order.
        candidates = np.flatnonzero(row >= np.partition(row, -k)[-k])
        into[:] = candidates[np.argsort(-row[candidates], kind="stable")][:k]
    return best


def largest(values: Array, k: int) -> list[int]:
    """Return the indexes of the k largest of flat `values`, largest first, equal ones by lower index.

    NaN comes last. `k` may exceed the number of values.
    """
    key = np.where(np.isnan(values), -np.inf, values) if values.dtype.kind == "f" else values
    # An ascending stable sort of the reversed array, read backwards, keeps equal ones in their order.
    order = len(key) - 1 - np.argsort(key[::-1], kind="stable")[::-1]
    indexes: list[int] = order[:k].tolist()
    return indexes


def classification(values: Array, k: int, labels: Sequence[str]) -> Steps[list[str]]:
    """Return Triton's classification of flat `values`, as steps.

    Each class is "value:index", or, where there is one, "value:index:label".
    """
    write = ("{:.6f}" if values.dtype.kind == "f" else "{:d}").format
    best: list[str] = []
    for index in largest(values, k):
        label = f":{labels[index]}" if index < len(labels) else ""
        best.append(f"{write(values[index].item())}:{index}{label}")
        if len(best) % _CLASSES_A_STEP == 0:
            yield
    return best
