"""Counter and Histogram for the requests' path: prometheus_client's exposition, a tenth of its cost.

prometheus_client takes a lock for each change and walks the buckets one by one: with nine observations a
request that was a tenth of LeNet's rate. These are changed by plain additions and read at each scrape.

Each child is changed by one thread only (the event loop's); the scrape's thread only reads. What it reads
may be one event behind in one number of a histogram and not in another, never wrong for longer.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final, Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]


class CounterChild:
    """One series of a Counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """Add `amount`, which is not negative."""
        self.value += amount


class HistogramChild:
    """The series of a Histogram with one set of labels."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Observations in each bucket, not cumulated; the last one is past every bound."""
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count `value` in the first bucket whose bound it does not exceed."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


_Child = TypeVar("_Child", CounterChild, HistogramChild)


class _Family(Generic[_Child]):
    """Children by their labels, made when they are first asked for."""

    def __init__(self, name: str, documentation: str, labelnames: Sequence[str]) -> None:
        self._name = name
        self._documentation = documentation
        self._labelnames: Final = tuple(labelnames)
        self._children: dict[Labels, _Child] = {}

    def labels(self, *values: str) -> _Child:
        """Return the child with these values, in the order of the label names."""
        if values not in self._children:
            if len(values) != len(self._labelnames):
                raise ValueError(
                    f"{self._name}: expected a value for each of {self._labelnames}, got {values}"
                )
            self._children[values] = self._new()
        return self._children[values]

    def remove(self, *values: str) -> None:
        """Forget the child with these values, if there is one."""
        self._children.pop(values, None)

    def _new(self) -> _Child:
        raise NotImplementedError

    def _series(self) -> list[tuple[Labels, _Child]]:
        # A copy, at once: the event loop may add a child while the scrape reads.
        return list(self._children.items())


class Counter(_Family[CounterChild], Collector):
    """A count that only grows; `name` ends in `_total`."""

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str], *, registry: CollectorRegistry
    ) -> None:
        super().__init__(name, documentation, labelnames)
        registry.register(self)

    def collect(self) -> Iterable[CounterMetricFamily]:
        """Return the family as it stands now."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labelnames)
        for labels, child in self._series():
            family.add_metric(labels, child.value)
        return [family]

    def _new(self) -> CounterChild:
        return CounterChild()


class Histogram(_Family[HistogramChild], Collector):
    """A distribution over buckets; `buckets` are their upper bounds, ascending, without infinity."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str],
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        super().__init__(name, documentation, labelnames)
        self._bounds = tuple(float(bound) for bound in buckets)
        registry.register(self)

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Return the family as it stands now."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labelnames)
        bounds = [*(str(floatToGoString(bound)) for bound in self._bounds), "+Inf"]  # type: ignore[no-untyped-call]
        for labels, child in self._series():
            counts, cumulated, total = list(child.counts), [], 0
            for count in counts:
                total += count
                cumulated.append(total)
            family.add_metric(labels, list(zip(bounds, cumulated, strict=True)), child.sum)
        return [family]

    def _new(self) -> HistogramChild:
        return HistogramChild(self._bounds)
