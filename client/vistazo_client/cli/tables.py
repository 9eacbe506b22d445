"""How tables and bars come out on a terminal, in a pipe, and without Unicode."""

import codecs
import io
import sys
import unicodedata

from rich.console import Console
from rich.table import Table
from rich.text import Text

# In a pipe there is no width to fit; rich would fold names at 80 columns.
PIPED_COLUMNS = 160

BAR_CHARACTERS = 20


# What stands for a character that the output's encoding does not have. Each is as wide, or tables would bend.
_ALIKE = {"×": "x", "…": ".", "–": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "█": "#", "•": "*"}
_REPLACING = "vistazo.replace"


def print_anything() -> None:
    """Let standard output take any character, whatever its encoding: what that lacks is replaced."""
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper) and stream.errors in {"strict", "surrogateescape"}:
        codecs.register_error(_REPLACING, _replaced)
        stream.reconfigure(errors=_REPLACING)


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(map(_alike, lost)), error.end


def _alike(character: str) -> str:
    if unicodedata.combining(character) or unicodedata.category(character) in {"Cf", "Mn"}:
        return ""
    letter = unicodedata.normalize("NFKD", character)[:1]
    wide = unicodedata.east_asian_width(character) in {"W", "F"}
    return _ALIKE.get(character) or (letter if letter.isascii() and not wide else "??" if wide else "?")


def _stdout() -> Console:
    piped = not sys.stdout.isatty()
    # highlight and markup would colour, and eat, parts of labels and file names.
    return Console(width=PIPED_COLUMNS if piped else None, highlight=False, markup=False)


def print_table(table: Table) -> None:
    """Print `table` to standard output."""
    _stdout().print(table)


def print_line(text: str) -> None:
    """Print a line to standard output, without what would steer a terminal."""
    _stdout().print(Text(text), soft_wrap=True)


def bar(probability: float) -> str:
    """Return a bar for a probability of 0 to 1, in characters that standard output can show."""
    full = "█" if _stdout().encoding.startswith("utf") else "#"
    return full * round(probability * BAR_CHARACTERS)
