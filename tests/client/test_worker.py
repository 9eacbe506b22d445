"""The processes: what they return, what they raise, and that they end."""

import os

import pytest

from vistazo_client.cli.errors import CommandError
from vistazo_client.cli.worker import Worker


class Thing:
    def __init__(self, start=0):
        if start < 0:
            raise ValueError("below 0")
        self.value = start

    def add(self, number):
        self.value += number
        return self.value

    def fail(self, kind):
        if kind == "missing":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        if kind == "command":
            raise CommandError("one line")
        raise RuntimeError("the reason")

    def die(self):
        os._exit(3)

    def close(self):
        pass


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_keeps_its_object_between_calls_and_ends_with_its_block():
    with Worker(Thing, 5) as thing:
        pid = thing.pid
        assert pid != os.getpid()
        assert [thing.call(Thing.add, 2), thing.call(Thing.add, number=3)] == [7, 10]
        assert alive(pid)
    assert not alive(pid)


def test_what_a_call_raises_is_raised_here_and_the_worker_goes_on():
    with Worker(Thing) as thing:
        with pytest.raises(CommandError, match="one line"):
            thing.call(Thing.fail, "command")
        with pytest.raises(CommandError, match="RuntimeError: the reason"):
            thing.call(Thing.fail, "other")
        with pytest.raises(ModuleNotFoundError) as missing:
            thing.call(Thing.fail, "missing")
        assert missing.value.name == "matplotlib"
        assert thing.call(Thing.add, 1) == 1


def test_a_worker_that_cannot_be_built_says_why():
    with pytest.raises(CommandError, match="below 0"), Worker(Thing, -1):
        pass


def test_a_worker_that_dies_is_an_error_and_not_a_wait():
    with Worker(Thing) as thing, pytest.raises(CommandError, match="ended unexpectedly"):
        thing.call(Thing.die)
