"""Pictures to send: a user's own file as it is, or JPEG files made of a photograph that a package ships.

Of each there are DIFFERENT_PICTURES, sent in turn, so that nothing between here and the engine can live off
one image.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vistazo_bench.errors import BenchError

if TYPE_CHECKING:
    from PIL import Image

DIFFERENT_PICTURES: Final = 4

# The size and about the file size of an ImageNet photograph.
JPEG_SIZE: Final = (500, 375)
JPEG_QUALITY: Final = 90
WEBP_QUALITIES: Final = (40, 60, 75, 90, 100)

# Photographs that other packages ship.
PHOTOGRAPHS: Final = (("sklearn", "datasets/images/china.jpg"), ("skimage", "data/coffee.png"))

# What a server takes. MPO is a JPEG with a second picture behind it, as some phones take them.
FORMATS: Final = {"JPEG": "JPEG", "MPO": "JPEG", "PNG": "PNG", "WEBP": "WebP", "BMP": "BMP"}


@dataclass(frozen=True, slots=True)
class Pictures:
    """The same picture in several ways, encoded."""

    files: tuple[bytes, ...]
    source: str
    """What they are, in words."""


def jpeg_files(image: Path | None, size: tuple[int, int] = JPEG_SIZE) -> Pictures:
    """Return JPEG files of `size` (width and height) made of a picture, each rolled by another quarter.

    The picture is `image`, a photograph that an installed package ships, or noise. Raises BenchError.
    """
    pixels, source = photograph(image, must=True)
    files = tuple(jpeg(pixels, turn, size) for turn in range(DIFFERENT_PICTURES))
    return Pictures(files, f"JPEG {size[0]}×{size[1]} of {source}")


def own_files(path: Path) -> Pictures:
    """Return a file as it is, and the same picture mirrored and turned, as files of its kind and size.

    Raises BenchError when it cannot be read or is of a format that no server takes.
    """
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415  not needed to import the command

    from vistazo_preprocessing.errors import ImageError  # noqa: PLC0415
    from vistazo_preprocessing.reading import reading  # noqa: PLC0415

    # Of one's own file every size is meant.
    Image.MAX_IMAGE_PIXELS = None
    try:
        original = path.read_bytes()
        image = Image.open(io.BytesIO(original))
        image.load()
    except UnidentifiedImageError as error:
        told = "it is damaged"
        try:
            with reading(original):
                pass
        except ImageError as reason:
            told = str(reason)
        raise BenchError(f"cannot read the image {path}: {told}") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise BenchError(f"cannot read the image {path}: {error}") from error
    if image.format not in FORMATS:
        raise BenchError(f"--image: expected a JPEG, PNG, WebP or BMP file, got {image.format}: {path}")
    flips = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180)
    turned = tuple(_saved_alike(image.transpose(flip), image, original) for flip in flips)
    what = f"{FORMATS[image.format]} {image.width}×{image.height}"
    return Pictures((original, *turned), f"{path.name} as it is ({what}), and mirrored or turned")


def photograph(image: Path | None, *, must: bool) -> tuple[NDArray[np.uint8], str]:
    """Return RGB pixels and their source. Without Pillow: noise, unless `must`."""
    try:
        from PIL import Image  # noqa: PLC0415
    except ModuleNotFoundError:
        if must or image is not None:
            raise
        return _noise(), "noise (Pillow is not installed)"
    candidates = [(image, str(image.name))] if image is not None else _shipped()
    for path, name in candidates:
        try:
            with Image.open(path) as opened:
                return np.asarray(opened.convert("RGB")), name
        except OSError as error:
            if image is not None:
                raise BenchError(f"cannot read the image {image}: {error}") from error
    return _noise(), "noise (no photograph at hand; give one with --image)"


def jpeg(pixels: NDArray[np.uint8], turn: int, size: tuple[int, int] = JPEG_SIZE) -> bytes:
    """Return a picture as a JPEG file of `size`, its largest part of that shape, rolled by some quarters."""
    from PIL import Image  # noqa: PLC0415

    image = Image.fromarray(pixels)
    # From the middle.
    width = min(image.width, image.height * size[0] // size[1])
    height = min(image.height, image.width * size[1] // size[0])
    left, top = (image.width - width) // 2, (image.height - height) // 2
    image = image.resize(size, box=(left, top, left + width, top + height))
    rolled = np.roll(np.asarray(image), turn * size[0] // DIFFERENT_PICTURES, axis=1)
    file = io.BytesIO()
    Image.fromarray(rolled).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _saved_alike(image: "Image.Image", like: Any, original: bytes) -> bytes:  # noqa: ANN401  an ImageFile's own
    """Return the image as a file of the kind of `like`, which was read from `original`."""
    from PIL import JpegImagePlugin  # noqa: PLC0415

    # Which way up it is shown, and its colours, are a part of the work.
    kept = {name: like.info[name] for name in ("exif", "icc_profile") if like.info.get(name)}
    if FORMATS[like.format] == "JPEG":
        sampling = JpegImagePlugin.get_sampling(like)
        if sampling >= 0:
            kept["subsampling"] = sampling
        progressive = bool(like.info.get("progressive"))
        return _saved(image, "JPEG", qtables=like.quantization, progressive=progressive, **kept)
    if like.format != "WEBP":
        return _saved(image, like.format, **kept)
    if b"VP8L" in original[:64]:
        return _saved(image, "WEBP", lossless=True, exact=True, **kept)
    # A WebP does not say its quality: the one whose file is about as large.
    tries = [_saved(image, "WEBP", quality=quality, **kept) for quality in WEBP_QUALITIES]
    return min(tries, key=lambda data: abs(len(data) - len(original)))


def _saved(image: "Image.Image", kind: str, **options: Any) -> bytes:  # noqa: ANN401  each format's own
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _shipped() -> Sequence[tuple[Path, str]]:
    found = []
    for package, path in PHOTOGRAPHS:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            found.append((Path(spec.origin).parent / path, f"{package}'s {Path(path).name}"))
    return found


def shipped_pictures() -> list[Path]:
    """Return every JPEG and PNG file that the packages of PHOTOGRAPHS ship beside theirs."""
    folders = [path.parent for path, _ in _shipped()]
    return [path for folder in folders for path in sorted(folder.glob("*.[jp][pn]g"))]


def _noise() -> NDArray[np.uint8]:
    # Coarse, so that a JPEG of it has about the size of a photograph's.
    width, height = JPEG_SIZE
    coarse = np.random.default_rng(0).integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    return coarse.repeat(5, axis=0).repeat(5, axis=1)
