"""BatchOutputs: what one run of a batch gave, shared by the requests that rode in it."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

from numpy.typing import NDArray

Derived = TypeVar("Derived")


class BatchOutputs:
    """One array for each output tensor, batch dimension first, and what was derived from them.

    What every member of a batch needs, such as the softmax, is worked out once for all of them, by the first
    that asks: for a small network, calls into numpy for each image cost as much as the network.
    """

    __slots__ = ("_derived", "arrays")

    def __init__(self, arrays: tuple[NDArray[Any], ...]) -> None:
        self.arrays = arrays
        self._derived: dict[Hashable, Any] = {}

    def derive(self, key: Hashable, work_out: Callable[[], Derived]) -> Derived:
        """Return what `work_out` returned for this `key` when it was first asked for."""
        if key not in self._derived:
            self._derived[key] = work_out()
        derived: Derived = self._derived[key]
        return derived


class Row(NamedTuple):
    """One sample's part of a batch's outputs."""

    outputs: BatchOutputs
    at: int
    """Index of the sample in the batch."""
