"""Records `make demo` as a picture: runs it in a terminal and writes what it prints, colours too, as SVG.

    .venv/bin/python docs/pictures/record.py        # → docs/pictures/demo.svg

The picture has the beginning and the end of each step; nothing in it is written by hand.
"""

import io
import os
import pty
import re
import sys
import tempfile
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT: Final = Path(__file__).parents[2]
PICTURE: Final = Path(__file__).with_name("demo.svg")
WIDTH: Final = 156
FIRST_LINES: Final = 10
LAST_LINES: Final = 10

# As rich's own, without its fonts, which a browser would load from another host.
SVG: Final = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: system-ui, sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""

_STEP: Final = re.compile(r"(?:\x1b\[[\d;]*m)*── ")
_UP: Final = "\x1b[1A"
_MOVES: Final = re.compile(r"\x1b\[\??[\d;]*[A-HJKSTfhlnsu]|\x1b\][^\x07]*\x07")


def main() -> int:
    """Run the demo, and write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        output = run([sys.executable, str(ROOT / "tests" / "e2e" / "demo.py")], Path(folder), WIDTH)
    PICTURE.write_text(picture(shown(output), "make demo", "demo", WIDTH), encoding="utf-8")
    return 0


def picture(lines: list[str], title: str, name: str, width: int) -> str:
    """Return an SVG of a terminal with these lines; `name` begins the names inside it."""
    console = Console(record=True, width=width, file=io.StringIO())
    for line in lines:
        console.print(Text.from_ansi(line, no_wrap=True, overflow="ellipsis"))
    svg = console.export_svg(title=title, theme=MONOKAI, code_format=SVG, unique_id=name)
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def run(command: list[str], folder: Path, width: int) -> str:
    """Return what `command` prints on a terminal; RuntimeError when it fails."""
    chunks: list[bytes] = []

    def keep(descriptor: int) -> bytes:
        chunks.append(os.read(descriptor, 65536))
        return chunks[-1]

    os.environ.update(COLUMNS=str(width), LINES="50", TERM="xterm-256color", COLORTERM="truecolor")
    os.chdir(folder)
    status = os.waitstatus_to_exitcode(pty.spawn(command, keep))
    if status != 0:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}")
    return b"".join(chunks).decode()


def shown(output: str) -> list[str]:
    """Return the beginning and the end of each step."""
    steps: list[list[str]] = [["$ make demo"]]
    for line in left_standing(output):
        if _STEP.match(line):
            steps.append([])
        steps[-1].append(line)
    return [line for step in steps for line in _shortened(step)]


def left_standing(output: str) -> list[str]:
    """Return the lines that a terminal shows in the end, without what progress bars overwrote."""
    lines: list[str] = []
    for raw in output.replace("\r\n", "\n").split("\n"):
        last = raw.rstrip("\r").rsplit("\r", 1)[-1]
        if _UP in last:
            lines.pop()
        lines.append(_MOVES.sub("", last))
    return lines


def _shortened(step: list[str]) -> list[str]:
    if len(step) <= FIRST_LINES + LAST_LINES + 1:
        return step
    return [*step[:FIRST_LINES], "…", *step[-LAST_LINES:]]


if __name__ == "__main__":
    sys.exit(main())
