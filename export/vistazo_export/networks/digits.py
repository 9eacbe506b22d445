"""Real handwritten digits: scikit-learn's copy of the UCI set, split once for everyone.

1,797 images of 8 × 8 pixels, light digits on dark, from Alpaydin and Kaynak, "Optical Recognition of
Handwritten Digits", UCI Machine Learning Repository, 1998.

    python -m vistazo_export.networks.digits --out digits

writes those that LeNet has never seen as PNG files, a subfolder for each digit, for `vistazo evaluate`.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

HELD_OUT_SHARE = 0.25
SPLIT_SEED = 20130


@dataclass(frozen=True)
class Digits:
    """Some of the digits, in the order of the split."""

    images: npt.NDArray[np.uint8]
    """N × 8 × 8, 0 (paper) to 255 (ink): the data set's 0 to 16 scaled and rounded."""
    labels: npt.NDArray[np.int64]
    """N digits, 0 to 9."""


def training() -> Digits:
    """Return the digits that `train_lenet` learns from."""
    return _split()[0]


def held_out() -> Digits:
    """Return the digits that no training has seen: 450, stratified by class."""
    return _split()[1]


def _split() -> tuple[Digits, Digits]:
    from sklearn.datasets import load_digits  # noqa: PLC0415 - slow to import
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    labels = data.target.astype(np.int64)
    seen, unseen = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT_SHARE, random_state=SPLIT_SEED, stratify=labels
    )
    return Digits(images[seen], labels[seen]), Digits(images[unseen], labels[unseen])


def write_folder(data: Digits, folder: Path) -> list[Path]:
    """Write each image as an 8 × 8 PNG, folder/DIGIT/NUMBER.png, and return the paths in the order of `data`.

    Raises FileExistsError for a folder that is not empty: what else lies in it would be evaluated, too.
    """
    from PIL import Image  # noqa: PLC0415 - a split alone needs none

    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    paths = []
    for number, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        path = folder / str(label) / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        paths.append(path)
    return paths


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to make."
)
@click.option("--replace", is_flag=True, help="Delete what is in the folder's digits 0 to 9 first.")
def main(out: Path, *, replace: bool) -> None:
    """Write the held-out digits as PNG files, a subfolder for each digit."""
    if replace:
        for digit in range(10):
            shutil.rmtree(out / str(digit), ignore_errors=True)
    try:
        paths = write_folder(held_out(), out)
    except FileExistsError as error:
        raise click.ClickException(f"{error}; give another --out, or --replace") from error
    click.echo(f"wrote {len(paths)} digits to {out}")


if __name__ == "__main__":
    main()
