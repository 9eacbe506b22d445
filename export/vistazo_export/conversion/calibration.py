"""Real images that show an int8 export how large the values inside a network become."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vistazo_export.checks.parity import Pixels
from vistazo_export.checks.sample_images import sample_images
from vistazo_export.errors import CalibrationError
from vistazo_export.networks import digits
from vistazo_export.networks.download import sha256_of
from vistazo_export.presets.preset import Preset, to_pixels

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")

MOST_IMAGES = 500
"""Taken of a larger folder: more make the ranges no better, only the export slower."""

# Small, so that a big network needs no more memory than one small batch.
BATCH = 4

# Corner crops keep this share of each side.
CROP_SHARE = 0.75

# Enough to tell two sets apart, short enough to read.
FINGERPRINT_DIGITS = 16


@dataclass(frozen=True)
class CalibrationSet:
    """Images to calibrate with; decoded only when asked for."""

    summary: str
    """What they are and their fingerprint, for the manifest; names no file, as paths are private."""
    images: Callable[[], Iterator[Image.Image]]

    def batches(self, preset: Preset) -> Iterator[Pixels]:
        """Give all images as the graph takes them, a few at a time: n × H × W × C.

        Raises CalibrationError at one that cannot be read.
        """
        batch = []
        for image in self.images():
            batch.append(to_pixels(image, preset))
            if len(batch) == BATCH:
                yield np.stack(batch)
                batch = []
        if batch:
            yield np.stack(batch)


def calibration_set(folder: Path | None, channels: int) -> CalibrationSet:
    """Return the images in `folder` and below it, or without one our own for this many channels.

    Our own are views of the sample photographs (3) or the digits that LeNet was trained on (1). Raises
    CalibrationError where the folder cannot be read or holds no image.
    """
    if folder is not None:
        return _from_folder(folder)
    if channels == 1:
        seen = digits.training().images
        images = [Image.fromarray(image) for image in seen]
        what = f"{len(images)} training digits (default)"
    else:
        photographs = sample_images(channels)
        images = [view for photograph in photographs for view in _views(photograph)]
        what = f"{len(images)} views of {len(photographs)} sample photographs (default)"
    fingerprint = _fingerprint(hashlib.sha256(image.tobytes()).hexdigest() for image in images)
    return CalibrationSet(f"{what}, sha256 {fingerprint}", lambda: iter(images))


def _from_folder(folder: Path) -> CalibrationSet:
    if not folder.is_dir():
        raise CalibrationError(f"no calibration folder {folder}")
    try:
        found = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
        )
        # Evenly spaced, because folders of classes sort by class.
        step = max(1.0, len(found) / MOST_IMAGES)
        files = [found[int(index * step)] for index in range(min(len(found), MOST_IMAGES))]
        fingerprint = _fingerprint(sha256_of(path) for path in files)
    except OSError as error:
        raise CalibrationError(f"cannot read the calibration folder: {error}") from error
    if not files:
        raise CalibrationError(f"no images in the calibration folder {folder}: {', '.join(SUFFIXES)}")
    count = str(len(files)) if len(files) == len(found) else f"{len(files)} of {len(found)}"
    noun = "image" if len(found) == 1 else "images"
    return CalibrationSet(
        f"{count} {noun} of a folder, sha256 {fingerprint}", lambda: (_opened(path) for path in files)
    )


def _opened(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB" if image.mode != "L" else "L")
    # Pillow's decoders raise whatever a damaged file makes them stumble over.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise CalibrationError(f"cannot read the calibration image {path}: {reason}") from error


def _views(photograph: Image.Image) -> Iterator[Image.Image]:
    """Give the photograph mirrored, and its four corners, every other one mirrored.

    Not the photograph itself: that is what the parity checks look at.
    """
    yield ImageOps.mirror(photograph)
    width, height = (round(side * CROP_SHARE) for side in photograph.size)
    for left, mirrored in ((0, False), (photograph.width - width, True)):
        for top in (0, photograph.height - height):
            corner = photograph.crop((left, top, left + width, top + height))
            yield ImageOps.mirror(corner) if mirrored else corner


def _fingerprint(digests: Iterable[str]) -> str:
    """Return one digest for many; the images' names and order make no difference."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()[:FINGERPRINT_DIGITS]
