"""Records a first try as a picture: export, serve and classify, with what each prints.

    .venv/bin/python docs/pictures/terminal.py      # → docs/assets/terminal.svg

The network is the trained LeNet, whose answers need no download. Ports 8001 and 8002 have to be free.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Final

from PIL import Image
from record import ROOT, left_standing, picture, run

from vistazo_export.networks import digits

PICTURE: Final = ROOT / "docs" / "assets" / "terminal.svg"
# As wide as the table that export prints.
WIDTH: Final = 126
DIGITS: Final = 3
COMMANDS: Final = (
    "vistazo export lenet",
    "vistazo serve &",
    "vistazo health --wait 60",
    "vistazo classify digits --model lenet --top 2",
    "kill %1; wait",
)


def main() -> int:
    """Run the commands, and write the picture."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = "\n".join(f"printf '\\e[36m$ %s\\e[0m\\n' '{command}'\n{command}" for command in COMMANDS)
    with tempfile.TemporaryDirectory() as folder:
        write_digits(Path(folder) / "digits")
        output = run(["bash", "-ec", script], Path(folder), WIDTH)
    lines = left_standing(output.rstrip())
    PICTURE.write_text(picture(lines, "vistazo", "terminal", WIDTH), encoding="utf-8")
    return 0


def write_digits(folder: Path) -> None:
    """Write digits that the network has never seen, each named after what it shows."""
    folder.mkdir()
    held_out = digits.held_out()
    for index in range(DIGITS):
        Image.fromarray(held_out.images[index]).save(folder / f"digit-{held_out.labels[index]}.png")


if __name__ == "__main__":
    sys.exit(main())
