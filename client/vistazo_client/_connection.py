"""Where a client's calls go: channels opened when first used, in each process of its own.

Nothing here is public.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Final, Generic

from vistazo_client._channel import ChannelT, Link
from vistazo_client._fork_lock import ForkLock
from vistazo_client._target import Target

# After a failure the other targets are asked first for so long: until grpc has tried to reconnect.
DOWN_SECONDS: Final = 1.0
# And this is the longest, where it hangs and each look at it costs somebody an answer.
LONGEST_DOWN_SECONDS: Final = 32.0


class Connection(Generic[ChannelT]):
    """The channels of one client, one for each target.

    A forked child opens its own: the parent's share their sockets with the parent, and nothing reads
    from them in the child.
    """

    def __init__(self, targets: Sequence[Target], open_channel: Callable[[Target], ChannelT]) -> None:
        self._targets = targets
        self._open_channel = open_channel
        self._opened: _Opened[ChannelT] | None = None
        self._closed = False
        # Closing, or only collecting, a parent's channel in the child would speak on its sockets.
        self._abandoned: list[_Opened[ChannelT]] = []

    def link(self) -> Link[ChannelT]:
        """Return the link for the next attempt: each in turn, those that are down last.

        Raises RuntimeError once the channels were taken.
        """
        opened = self._opened
        if opened is None or opened.process != os.getpid():
            opened = self._open()
        return opened.next()

    @property
    def has_several(self) -> bool:
        """Whether there is more than one target."""
        return len(self._targets) > 1

    def failed(self, link: Link[ChannelT]) -> None:
        """Ask other targets first for a while."""
        link.down_until = time.monotonic() + DOWN_SECONDS

    def hangs(self, link: Link[ChannelT]) -> None:
        """Ask other targets first for a while, the longer the more calls in a row it left unanswered.

        What is refused costs a caller nothing, what hangs the time that it had.
        """
        link.silent += 1
        seconds = min(DOWN_SECONDS * 2.0 ** (link.silent - 1), LONGEST_DOWN_SECONDS)
        link.down_until = time.monotonic() + seconds

    def take_channels(self) -> list[ChannelT]:
        """Return the channels that this process has to close; there will be no others."""
        with _opening.lock:
            opened, self._opened = self._opened, None
            self._closed = True
        if opened is None or opened.process != os.getpid():
            self._abandoned += [] if opened is None else [opened]
            return []
        return [link.channel for link in opened.links]

    def _open(self) -> "_Opened[ChannelT]":
        with _opening.lock:
            opened = self._opened
            if opened is not None and opened.process == os.getpid():
                return opened
            if self._closed:
                raise RuntimeError("this client is closed; make another")
            if opened is not None:
                self._abandoned.append(opened)
            self._opened = opened = _Opened([Link(self._open_channel(target)) for target in self._targets])
            return opened


class _Opened(Generic[ChannelT]):
    """The links of one process."""

    def __init__(self, links: list[Link[ChannelT]]) -> None:
        self.links = links
        self.process = os.getpid()
        self._turn = 0

    def next(self) -> Link[ChannelT]:
        if len(self.links) == 1:
            return self.links[0]
        now = time.monotonic()
        # Two threads may take the same turn: no harm.
        self._turn = (self._turn + 1) % len(self.links)
        in_turn = self.links[self._turn :] + self.links[: self._turn]
        up = [link for link in in_turn if link.down_until <= now]
        return up[0] if up else min(in_turn, key=lambda link: link.down_until)


# Under which channels are opened.
_opening = ForkLock()
