"""Images whose class the tiny model knows by looking: a folder with a subfolder a colour."""

from pathlib import Path

from PIL import Image

COLOURS = {"red": (200, 10, 10), "green": (10, 200, 10), "blue": (10, 10, 200)}


def paint(folder: Path) -> None:
    """Write two images of each colour, and beside them what systems leave in folders."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8), colour).save(folder / name / f"{number}.png")
    (folder / "red" / "._0.png").write_bytes(b"\0\5\x16\7")
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / "blue" / "notes.txt").write_text("no image")
