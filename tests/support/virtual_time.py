"""An event loop for simulations: its time goes from timer to timer, and nothing outside it exists."""

import asyncio
import selectors


class _NothingOutside(selectors.SelectSelector):
    """Waits for no socket: passes the time that would have been waited on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("every task waits for something that no timer will bring")
        self.now += timeout
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Runs what is ready, then goes to the next timer at once. No sockets, no threads.

    looptime, which the other tests in virtual time use, lets both in, and for that goes round forty times
    for each step of its time: half of what a simulation of a million requests takes.
    """

    def __init__(self) -> None:
        self._outside = _NothingOutside()
        super().__init__(self._outside)

    def time(self) -> float:
        """Return the seconds since the loop was made."""
        return self._outside.now
