"""Trying whether a sample's answer depends on its batch-mates: beside some of extreme values.

Knows no engine: it is given a function that runs a batch. What is compared are runs of one batch size, with
the sample at the same place: then kernels take the same path, and all that differs is what the mates hold.
Runs of other sizes sum in another order, which is rounding and no influence.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Run = Callable[[Sequence[Array]], Sequence[Array]]
"""Runs a batch: one array for each input, samples first; gives one for each output, a row a sample."""

# Relative to the largest value of the sample's own answer: what the same run may give when it is made again.
# Deterministic kernels give 0; of others the noise is measured, and counts four times.
SAME: Final = 1e-5
_NOISES: Final = 4
_REPEATS: Final = 3

# Between runs of different sizes, which sum in another order, in float16 or int8 at worst. An answer that
# shares something out over the batch changes by half or more. Only floats are held to it: whole numbers, such
# as labels, may tip by rounding.
ANOTHER_SIZE: Final = 5e-2

INFLUENCE: Final = "a sample's answer depends on the others in its batch"


def influence(
    run: Run, sample: Sequence[Array], sizes: Sequence[int], *, seconds: float, alone: bool = True
) -> str:
    """Return why samples must not share a batch, empty where nothing speaks against it.

    `sample` has the shape and type of each input, without the batch, and values that the graph takes.
    `sizes` are those of the batches to try, at least 2. A loud mate and one that is no number are always
    tried, at the smallest size; the other mates, places and sizes as far as `seconds` reach. `alone` says
    that the graph also runs a batch of 1.
    """
    began = time.monotonic()
    trial = _Trial(run, sample)
    slowest = 0.0
    for size in sorted(set(sizes)):
        for at, make in enumerate((_noise, _signed_noise)):
            # The largest size may take long, too long where the smaller one has shown how long.
            spent = time.monotonic() - began
            if (at or size != min(sizes)) and spent + 3 * slowest * size > seconds:
                break
            started = time.monotonic()
            if reason := trial.base(size, make):
                return reason
            slowest = max(slowest, (time.monotonic() - started) / size)
            if alone and at == 0 and size == min(sizes) and (reason := trial.other_size()):
                return reason
            for number, (values, places) in enumerate(_mates(size)):
                must = at == 0 and size == min(sizes) and number < 2
                if not must and time.monotonic() - began + slowest * size > seconds:
                    break
                if reason := trial.beside(values, places):
                    return reason
    return trial.verdict()


class _Trial:
    """A sample, its answer in one company, and the same in others."""

    def __init__(self, run: Run, sample: Sequence[Array]) -> None:
        self._run = run
        self._like = [np.asarray(array) for array in sample]
        self._sample = self._like
        self._size = 0
        self._expected: Sequence[Array] = ()
        self._kinds = {array.dtype.kind == "f" for array in self._like}
        self._compared = self._failed = 0
        self._failure = ""
        self._noise = 0.0

    def base(self, size: int, make: "Values") -> str:
        """Run a batch of `size` times one sample: what all others are compared with."""
        self._size = size
        full = [_filled(array, make) for array in self._like]
        floats = [new if new.dtype.kind == "f" else old for new, old in zip(full, self._like, strict=True)]
        failure = ""
        # Which whole numbers a graph takes nobody knows: it may be only those that it was warmed up with.
        for sample in (full, floats, self._like):
            try:
                self._expected = self._rows([sample] * size)
            except Exception as error:  # noqa: BLE001  ONNX Runtime's exceptions share no base class
                failure = failure or " ".join(str(error).split())[:300]
                continue
            self._sample = sample
            return ""
        return f"it runs no batch of {size}: {failure}"

    def other_size(self) -> str:
        """Compare with the sample in a batch of its own."""
        try:
            single = self._rows([self._sample])
        except Exception:  # noqa: BLE001  then it is none of the batch's
            return ""
        for expected, found in zip(self._expected, single, strict=True):
            if expected.dtype.kind == "f" and not difference(expected[:1], found) <= ANOTHER_SIZE:
                return "a sample's answer depends on the size of its batch"
        return ""

    def beside(self, values: "Values", places: Sequence[int]) -> str:
        """Run the sample at `places` among mates full of `values`, and compare its answers."""
        mates = [_filled(array, values) for array in self._like]
        mixed = [
            [
                mate if (mate.dtype.kind == "f") == is_float else own
                for mate, own in zip(mates, self._sample, strict=True)
            ]
            for is_float in sorted(self._kinds, reverse=True)
        ]
        failure = ""
        # All inputs at once; where the graph refuses that, the floats alone, then the others.
        for mate in [mates, *(mixed if len(self._kinds) > 1 else [])]:
            batch = [mate] * self._size
            for place in places:
                batch[place] = self._sample
            try:
                found = self._rows(batch)
            except Exception as error:  # noqa: BLE001  a run that fails is repeated one by one, and tells nothing
                failure = failure or " ".join(str(error).split())[:300]
                continue
            self._compared += 1
            if self._differs(found, places):
                return INFLUENCE
            if mate is mates:
                return ""
        if failure:
            self._failed += 1
            self._failure = failure
        return ""

    def verdict(self) -> str:
        """Return why batches cannot be trusted, where all other samples failed beside this one."""
        if self._failed and not self._compared:
            return f"no batch with other samples ran: {self._failure}"
        return ""

    def _differs(self, found: Sequence[Array], places: Sequence[int]) -> bool:
        rows = list(places)
        pairs = list(zip(self._expected, found, strict=True))
        largest = max((difference(a[at], b[at]) for a, b in pairs for at in rows), default=0.0)
        if largest <= SAME:
            return False
        # The same run once more, and again: all that is allowed is what differs there.
        for _ in range(_REPEATS):
            again = self._rows([self._sample] * self._size)
            pairs = list(zip(self._expected, again, strict=True))
            apart = (difference(a[at], b[at]) for a, b in pairs for at in range(self._size))
            self._noise = max(self._noise, max(apart, default=0.0))
            if largest <= _NOISES * self._noise:
                return False
        return True

    def _rows(self, batch: Sequence[Sequence[Array]]) -> list[Array]:
        columns = [np.stack(column) for column in zip(*batch, strict=True)]
        # An engine may give its own buffers, which the next run writes over.
        outputs = [np.array(output) for output in self._run(columns)]
        for output in outputs:
            if output.ndim == 0 or len(output) != len(batch):
                raise ValueError(f"an output of a batch of {len(batch)} has the shape {list(output.shape)}")
        return outputs


def difference(expected: Array, found: Array) -> float:
    """Return the largest difference relative to the largest finite value; of other than floats, 0 or 1.

    NaN and infinities must be where they were.
    """
    if expected.shape != found.shape:
        return float("inf")
    if expected.dtype.kind != "f":
        return float(not np.array_equal(expected, found))
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(found)):
        return float("inf")
    if not np.array_equal(expected[~finite], found[~finite], equal_nan=True):
        return float("inf")
    before, after = expected[finite].astype(np.float64), found[finite].astype(np.float64)
    largest = float(np.abs(before).max(initial=0.0))
    return float(np.abs(before - after).max(initial=0.0)) / (largest or 1.0)


Values = Callable[[Array, np.random.Generator], Any]
"""Makes the values of a sample like an array."""


def _filled(array: Array, make: Values) -> Array:
    """Return an array of the same shape and type; always the same one for the same `make`."""
    with np.errstate(all="ignore"):
        values = np.broadcast_to(np.asarray(make(array, np.random.default_rng(0))), array.shape)
        return values.astype(array.dtype)


def _noise(array: Array, random: np.random.Generator) -> Any:  # noqa: ANN401
    """As inputs usually are: 0 to 1, of bytes 0 to 255."""
    if array.dtype.kind == "f":
        return random.random(array.shape)
    return _whole(array, random, 4)


def _signed_noise(array: Array, random: np.random.Generator) -> Any:  # noqa: ANN401
    if array.dtype.kind == "f":
        return random.normal(size=array.shape) * 2
    return _whole(array, random, 2)


def _whole(array: Array, random: np.random.Generator, below: int) -> Any:  # noqa: ANN401
    kind = array.dtype
    if kind == np.uint8:
        return random.integers(0, 256, array.shape)
    if kind.kind in "iu":
        return random.integers(0, below, array.shape)
    return random.integers(0, 2, array.shape).astype(bool) if kind.kind == "b" else array


def _loud(array: Array, random: np.random.Generator) -> Any:  # noqa: ANN401
    """Of both signs, so that a mean, a largest and a smallest value all follow it."""
    if array.dtype.kind == "f":
        return random.normal(size=array.shape) * 1e4
    if array.dtype.kind in "iu":
        bounds = np.iinfo(array.dtype)
        return random.integers(bounds.min, bounds.max, array.shape, dtype=array.dtype, endpoint=True)
    return _constant(0.0, 1)(array, random)


def _constant(of_floats: float, of_others: int | str) -> Values:
    def make(array: Array, _: np.random.Generator) -> Any:  # noqa: ANN401
        kind = array.dtype
        if kind.kind == "f":
            return min(of_floats, float(np.finfo(kind).max)) if np.isfinite(of_floats) else of_floats
        if kind.kind in "iu":
            bounds = np.iinfo(kind)
            number = {"least": bounds.min, "most": bounds.max}.get(str(of_others), of_others)
            return np.array(min(max(int(number), bounds.min), bounds.max), kind)
        if kind.kind == "b":
            return of_others != 0
        return np.array("x" if of_others else "", dtype=object)

    return make


# After a scale or a mean over the batch, which follow the largest, what is no number and what is no end.
_VALUES: Final[tuple[Values, ...]] = (
    _loud,
    _constant(float("nan"), "most"),
    _constant(0.0, 0),
    _constant(-1e4, "least"),
    _constant(1e4, 255),
    _constant(float("inf"), 1),
    _constant(float("-inf"), -1),
    _constant(1e-6, 2),
    _constant(float(np.finfo(np.float32).max), 3),
)


def _mates(size: int) -> Iterator[tuple[Values, tuple[int, ...]]]:
    """Yield what mates are full of, and where the sample sits among them: before, after and between."""
    places: list[tuple[int, ...]] = [(0,), (size - 1,)]
    if size > 2:
        places = [(0, size - 1), (size // 2,)]
    for at, values in enumerate(_VALUES):
        yield values, places[at % 2]
    for at, values in enumerate(_VALUES):
        yield values, places[1 - at % 2]
