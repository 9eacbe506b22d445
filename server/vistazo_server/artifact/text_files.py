"""Reading small text files that people put beside a model."""

import os
import stat
from pathlib import Path
from typing import Final

# Labels of 22,000 classes with all their synonyms are 1 MB.
MOST_LABEL_BYTES: Final = 8 << 20


class FileUnreadableError(Exception):
    """A file that cannot be read; the message is one line and names it."""


def read_text(path: Path, *, most_bytes: int) -> str:
    """Return a file's text, UTF-8 with or without a mark.

    Raises FileNotFoundError, or FileUnreadableError for one that is larger, no file or no UTF-8.
    """
    try:
        # Opening a pipe would wait for whoever writes into it.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FileUnreadableError(f"{path} cannot be read: it is no file")
            content = file.read(most_bytes + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FileUnreadableError(f"{path} cannot be read: {reason}") from None
    if len(content) > most_bytes:
        raise FileUnreadableError(f"{path} is not read: it is larger than {most_bytes >> 10} KiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileUnreadableError(f"{path} cannot be read: it is no UTF-8 at byte {error.start}") from None


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the labels of a file with one a line, in index order. Raises as `read_text`."""
    lines = read_text(path, most_bytes=MOST_LABEL_BYTES).replace("\r\n", "\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return tuple(line.strip() for line in lines)
