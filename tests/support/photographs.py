"""Real photographs out of installed packages, and files of every format and awkward size made of them."""

import io
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from support.images import file

# Package data: these are in the wheels, nothing is downloaded.
PHOTOGRAPHS = (
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
    "skimage/data/astronaut.png",
    "skimage/data/brick.png",
    "skimage/data/camera.png",
    "skimage/data/cell.png",
    "skimage/data/chelsea.png",
    "skimage/data/coffee.png",
    "skimage/data/coins.png",
    "skimage/data/grass.png",
    "skimage/data/gravel.png",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/ihc.png",
    "skimage/data/logo.png",
    "skimage/data/moon.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/page.png",
    "skimage/data/retina.jpg",
    "skimage/data/rocket.jpg",
    "skimage/data/text.png",
)


def photograph(name: str) -> bytes:
    package, _, path = name.partition("/")
    return (Path(find_spec(package).origin).parent / path).read_bytes()


def cut(width: int, height: int) -> Image.Image:
    """Return a part of a photograph, or all of it resized where it is smaller."""
    with Image.open(io.BytesIO(photograph("skimage/data/coffee.png"))) as opened:
        photo = opened.convert("RGB")
    if width > photo.width or height > photo.height:
        return photo.resize((width, height))
    return photo.crop((50, 50, 50 + width, 50 + height))


def made() -> dict[str, bytes]:
    """Return files of every format and of awkward sizes, made from photographs."""
    photo = cut(500, 333)
    sizes = [
        *((1, 1), (2, 3), (3, 500), (500, 3), (31, 31), (100, 180), (180, 100), (223, 225), (224, 224)),
        *((225, 223), (255, 257), (256, 256), (257, 256), (257, 255), (232, 232), (299, 342), (301, 451)),
        *((1001, 667), (667, 1001)),
    ]
    return {
        "JPEG": file(photo, "JPEG", quality=85),
        "progressive JPEG": file(photo, "JPEG", progressive=True),
        "JPEG without subsampling": file(photo, "JPEG", subsampling=0),
        "greyscale JPEG": file(photo.convert("L"), "JPEG"),
        "CMYK JPEG": file(photo.convert("CMYK"), "JPEG"),
        "PNG": file(photo),
        "greyscale PNG": file(photo.convert("L")),
        "greyscale PNG with alpha": file(photo.convert("LA")),
        "PNG with alpha": file(with_alpha(photo)),
        "palette PNG": file(photo.quantize(64)),
        "palette PNG with transparency": file(photo.quantize(64), transparency=bytes(range(0, 256, 4))),
        "black and white PNG": file(photo.convert("1")),
        "WebP": file(photo, "WEBP"),
        "lossless WebP": file(photo, "WEBP", lossless=True),
        "WebP with alpha": file(with_alpha(photo), "WEBP", lossless=True, exact=True),
        "BMP": file(photo, "BMP"),
        "palette BMP": file(photo.quantize(64), "BMP"),
        **{f"{width} by {height}": file(cut(width, height)) for width, height in sizes},
    }


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def parity_images() -> dict[str, bytes]:
    """Return the images on which preprocessing is held to torchvision's, by name."""
    return {name: photograph(name) for name in PHOTOGRAPHS} | made()
