"""FairQueue: items of several owners, of whom each gets its turn."""

import itertools
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

_Owner = TypeVar("_Owner")
_Item = TypeVar("_Item")


class FairQueue(Generic[_Owner, _Item]):
    """Gives one item of each owner in turn, those of one owner in their order. `len` is all that wait."""

    def __init__(self) -> None:
        # The first owner is the one whose turn is next. Nobody is here without items.
        self._items: OrderedDict[_Owner, deque[_Item]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def owners(self) -> list[_Owner]:
        """Who waits, the next first."""
        return list(self._items)

    def items_of(self, owner: _Owner) -> Sequence[_Item]:
        """Return what waits of an owner, the next first."""
        return self._items.get(owner, ())

    def put(self, owner: _Owner, item: _Item) -> None:
        """Add an item; a new owner's turn is after those of all others."""
        items = self._items.get(owner)
        if items is None:
            items = self._items[owner] = deque()
        items.append(item)
        self._count += 1

    def head(self) -> tuple[_Owner, _Item]:
        """Return what is next, and whose it is; there must be something."""
        owner, items = next(iter(self._items.items()))
        return owner, items[0]

    def take(self) -> _Item:
        """Take what is next; there must be something."""
        owner, items = next(iter(self._items.items()))
        item = items.popleft()
        self._count -= 1
        if items:
            self._items.move_to_end(owner)
        else:
            del self._items[owner]
        return item

    def drop(self, owner: _Owner) -> None:
        """Forget everything of an owner."""
        self._count -= len(self._items.pop(owner, ()))

    def before_last_of(self, owner: _Owner) -> Iterator[_Item]:
        """Return what others have in front of the last item of `owner`, as things are."""
        turns = len(self._items[owner])
        for other, items in self._items.items():
            if other is owner:
                turns -= 1  # who stands behind it has had one turn less by then
            else:
                yield from itertools.islice(items, turns)

    def before_newcomer(self, items: int) -> int:
        """Return how many items others would have in front of the last of so many of a newcomer."""
        if items == 1:
            return len(self._items)
        return sum(min(len(others), items) for others in self._items.values())
