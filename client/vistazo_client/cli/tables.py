"""How tables and bars come out on a terminal, in a pipe, and without Unicode."""

import codecs
import io
import sys
import unicodedata

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

# In a pipe there is no width to fit; rich would fold names at 80 columns.
PIPED_COLUMNS = 160

BAR_CHARACTERS = 20


# What stands for a character that the output's encoding does not have. Each is as wide, or tables would bend.
_ALIKE = {"×": "x", "…": ".", "–": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "█": "#", "•": "*"}
_REPLACING = "vistazo.replace"

# Control, format and surrogate characters, and separators of lines and paragraphs. Scripts and emoji need the
# joiners among them.
_STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINING = "\u200c\u200d"


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
    """Print `table` to standard output, without what would steer a terminal."""
    _stdout().print(_Harmless(table))


def print_line(text: str) -> None:
    """Print a line to standard output, without what would steer a terminal."""
    _stdout().print(Text(harmless(text)), soft_wrap=True)


def harmless(text: str) -> str:
    """Return a text of somebody else's without what steers a terminal: escape sequences, other directions.

    Without their first character, the rest of a sequence is text as any other.
    """
    return text if text.isprintable() else "".join(filter(_is_harmless, text.replace("\t", " ")))


def _is_harmless(character: str) -> bool:
    return unicodedata.category(character) not in _STEERING or character in _JOINING


class _Harmless:
    """A renderable whose text is harmless, whoever wrote it; its styles are our own."""

    def __init__(self, inner: RenderableType) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for text, style, control in console.render(self._inner, options):
            yield Segment(text if control or text == "\n" else harmless(text), style, control)


def bar(probability: float) -> str:
    """Return a bar for a probability of 0 to 1, in characters that standard output can show."""
    full = "█" if _stdout().encoding.startswith("utf") else "#"
    return full * round(probability * BAR_CHARACTERS)
