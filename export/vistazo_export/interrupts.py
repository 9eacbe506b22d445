"""SIGTERM and Ctrl-C end a command at once, whatever code they meet; what it was writing is cleared away."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

TERMINATED: Final = 128 + signal.SIGTERM
"""As a shell reports a process that SIGTERM ended."""

# torch and others catch whatever is raised while they import or try something, and go on. Where an exception
# has vanished so, it is raised again this soon.
AGAIN_SECONDS: Final = 0.1


_Handler = Callable[[int, FrameType | None], None]


class _Shield:
    """How many steps are under way that must not be left half done."""

    depth = 0


_shield: Final = _Shield()

_unfinished: Final[dict[object, Callable[[], None]]] = {}
"""What is still to be cleared away, and how."""


def clear_in_the_end(what: object, clear: Callable[[], None]) -> None:
    """Let `clear` be called when a signal has ended the command and `what` was not cleared away until then.

    A signal may come just before a `finally` begins, or in contextlib's code that would have led there.
    """
    _unfinished[what] = clear


def cleared(what: object) -> None:
    """Take note that there is nothing more to clear away."""
    _unfinished.pop(what, None)


@contextmanager
def shielded() -> Iterator[None]:
    """Let a short step end before the command does, such as one that makes what has to be cleared away."""
    _shield.depth += 1
    try:
        yield
    finally:
        _shield.depth -= 1


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM, as SystemExit, and SIGINT, as KeyboardInterrupt, unwind the stack, and nothing else.

    What is made of the exception on its way, such as an error of torch's, ends here as what it was.
    """
    ending = _Ending()
    handlers: dict[int, _Handler] = {signal.SIGTERM: ending.begin, signal.SIGINT: ending.begin}
    if hasattr(signal, "SIGALRM"):
        handlers[signal.SIGALRM] = ending.insist
    try:
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    except ValueError:
        # Not the main thread: whoever called from there has the signals.
        yield
        return
    try:
        yield
    except BaseException as error:
        if ending.raised is None or error is ending.raised:
            raise
        raise ending.raised from None
    finally:
        _alarm(0.0)
        for number, handler in before.items():
            signal.signal(number, handler)
        if ending.raised is not None:
            for clear in list(_unfinished.values()):
                clear()
    if ending.raised is not None:
        raise ending.raised


class _Ending:
    """What a signal raised, until it has arrived."""

    def __init__(self) -> None:
        self.raised: BaseException | None = None

    def begin(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal that asks for the end."""
        self.raised = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(TERMINATED)
        _alarm(AGAIN_SECONDS)
        if not _shield.depth:
            raise self.raised

    def insist(self, _number: int, _frame: FrameType | None) -> None:
        """Raise it once more where it has vanished; what clears up after it is not disturbed."""
        if self.raised is not None and not _shield.depth and not _is_handled(self.raised):
            raise self.raised


def _is_handled(raised: BaseException) -> bool:
    """Return whether some `except`, `finally` or `with` is at work on it, or on what was made of it."""
    error, seen = sys.exception(), set[int]()
    while error is not None and id(error) not in seen:
        if error is raised:
            return True
        seen.add(id(error))
        error = error.__context__
    return False


def _alarm(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
