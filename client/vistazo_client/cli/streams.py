"""Standard streams that a caller closed, or that nothing more fits into."""

import io
import os
import sys
from contextlib import suppress
from typing import Final

_OUTPUT: Final = 1
_ERRORS: Final = 2
# By descriptor. What is written to a standard output that is closed shall fail, not be lost unnoticed.
_MODES: Final = {0: os.O_RDONLY, _OUTPUT: os.O_RDONLY, _ERRORS: os.O_WRONLY}


def prepare_streams() -> None:
    """Open the standard streams that are closed, and let standard error take anything.

    Else the next file or connection gets the number of a closed one, and what libraries print there goes into
    it. A message that cannot be printed is no reason to lose the results that can.
    """
    for number, mode in _MODES.items():
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stdout is None:  # as Python leaves it
        sys.stdout = open(_OUTPUT, "w", closefd=False)  # noqa: SIM115  for as long as the process
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _Forgiving.of(_ERRORS)


def output_failed(error: OSError) -> str:
    """Return what to say of an output that could not be written, and give up the rest of it."""
    with suppress(OSError):
        # Or Python would try once more at its end, and end with a message and a status of its own.
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, _OUTPUT)
        os.close(nothing)
    return f"the output cannot be written: {error.strerror}"


class _Forgiving(io.TextIOWrapper):
    """A stream on which nothing fails."""

    @classmethod
    def of(cls, number: int) -> "_Forgiving":
        buffer = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
        encoding = getattr(sys.stderr, "encoding", None)
        return cls(buffer, encoding=encoding, errors="backslashreplace", line_buffering=True)

    def write(self, text: str, /) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()
