"""How tables and bars come out on a terminal, in a pipe, and without Unicode."""

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

# In a pipe there is no width to fit; rich would fold names at 80 columns.
PIPED_COLUMNS = 160

BAR_CHARACTERS = 20


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
