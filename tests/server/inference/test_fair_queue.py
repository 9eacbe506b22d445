"""FairQueue: whose turn it is, and what others have in front of an item."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistazo_server.inference.fair_queue import FairQueue


def queue_of(**owners):
    """A queue in which the owners, in this order, have so many items: a1, a2, …"""
    queue = FairQueue()
    for owner, items in owners.items():
        for number in range(1, items + 1):
            queue.put(owner, f"{owner}{number}")
    return queue


def all_of(queue):
    return [queue.take() for _ in range(len(queue))]


def test_one_item_of_each_owner_is_taken_in_turn():
    queue = queue_of(a=4, b=1, c=2)

    assert all_of(queue) == ["a1", "b1", "c1", "a2", "c2", "a3", "a4"]


def test_a_newcomer_is_served_after_one_item_of_each_other():
    queue = queue_of(a=9, b=9)
    taken = queue.take()
    queue.put("c", "c1")

    assert [taken, *(queue.take() for _ in range(3))] == ["a1", "b1", "a2", "c1"]


def test_the_head_is_what_is_taken_next():
    queue = queue_of(a=2, b=1)

    for _ in range(3):
        owner, item = queue.head()
        assert item.startswith(owner)
        assert queue.take() == item


def test_a_dropped_owner_leaves_nothing_and_the_others_keep_their_turns():
    queue = queue_of(a=3, b=5, c=2)
    queue.drop("b")
    queue.drop("nobody")

    assert len(queue) == 5
    assert queue.owners == ["a", "c"]
    assert list(queue.items_of("b")) == []
    assert all_of(queue) == ["a1", "c1", "a2", "c2", "a3"]


owners_and_items = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 5), min_size=1)


@given(owners=owners_and_items, taken=st.integers(0, 12), data=st.data())
def test_what_others_have_in_front_is_what_is_taken_before(owners, taken, data):
    queue = queue_of(**owners)
    for _ in range(min(taken, len(queue) - 1)):
        queue.take()
    owner = data.draw(st.sampled_from(queue.owners))
    last = queue.items_of(owner)[-1]
    predicted = set(queue.before_last_of(owner))

    order = all_of(queue)

    assert predicted == {item for item in order[: order.index(last)] if not item.startswith(owner)}


@given(owners=owners_and_items, taken=st.integers(0, 12), items=st.integers(1, 4))
def test_a_newcomer_knows_how_many_items_of_others_come_before_its_last(owners, taken, items):
    queue = queue_of(**owners)
    for _ in range(min(taken, len(queue))):
        queue.take()
    predicted = queue.before_newcomer(items)
    for number in range(1, items + 1):
        queue.put("new", f"new{number}")

    assert all_of(queue).index(f"new{items}") == predicted + items - 1


def test_nothing_is_next_in_an_empty_queue():
    with pytest.raises(StopIteration):
        FairQueue().take()
