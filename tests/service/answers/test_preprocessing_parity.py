"""The server's Preprocessor equals torchvision's own presets to the bit, on real images."""

import io
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.images import file
from vistazo_preprocessing.preprocessor import Preprocessor
from vistazo_preprocessing.spec import PreprocessSpec, ResizeMode

pytest.importorskip("torch", reason="torch is not installed; pip install 'vistazo[export]'")
if find_spec("torchvision") is None:  # not imported here: that takes the helper of export
    pytest.skip("torchvision is not installed; pip install 'vistazo[export]'", allow_module_level=True)
pytest.importorskip("skimage", reason="scikit-image, which ships the photographs, is not installed")
pytest.importorskip("sklearn", reason="scikit-learn, which ships two photographs, is not installed")

# One of each preset that torchvision's classifiers have: bilinear and bicubic, resized to 256, 232 and 342.
PRESETS = (
    "AlexNet_Weights.IMAGENET1K_V1",
    "ResNet50_Weights.IMAGENET1K_V2",
    "EfficientNet_B0_Weights.IMAGENET1K_V1",
    "Inception_V3_Weights.IMAGENET1K_V1",
)
SAME_AS_ALEXNETS = ("VGG16_Weights.IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1")

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


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    files = {name: photograph(name) for name in PHOTOGRAPHS} | made()
    assert len(PHOTOGRAPHS) >= 20
    return files


@pytest.fixture(scope="module", params=PRESETS)
def preset(request):
    """torchvision's own transforms for published weights."""
    from vistazo_export.networks.zoo import torchvision_models

    return torchvision_models().get_weight(request.param).transforms()


def server_preprocessor(preset) -> Preprocessor:
    """Return what the server makes of a manifest that says what the preset says of itself."""
    (crop,), (resize,) = set(preset.crop_size), preset.resize_size
    return Preprocessor(
        PreprocessSpec(
            height=crop,
            width=crop,
            channels=3,
            resize_mode=ResizeMode.SHORTEST_EDGE,
            resize_size=resize,
            interpolation=Image.Resampling[preset.interpolation.name],
        ),
        max_pixels=65_000_000,
    )


def torchvision_pixels(preset, data: bytes) -> np.ndarray:
    """Return the preset's own pixels before its normalisation, uint8 H×W×C.

    The preset's forward is run as it is, with a mean of 0 and a deviation of 1, so that all that it does
    to the pixels but the division by 255 is nothing.
    """
    with Image.open(io.BytesIO(data)) as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow, of palettes with transparency
        image = opened
        if opened.has_transparency_data:
            # As a viewer shows it, which torchvision leaves to its callers.
            transparent = opened.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", opened.size, "white"), transparent)
        image = image.convert("RGB")
    mean, std = preset.mean, preset.std
    preset.mean, preset.std = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    try:
        scaled = preset(image).numpy() * 255
    finally:
        preset.mean, preset.std = mean, std
    pixels = np.round(scaled)
    assert np.abs(scaled - pixels).max() < 1e-3  # they were whole numbers
    return pixels.astype(np.uint8).transpose(1, 2, 0)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_every_pixel_equals_torchvisions(preset, images):
    preprocessor = server_preprocessor(preset)
    different = [
        name
        for name, data in images.items()
        if not np.array_equal(preprocessor.decode(data), torchvision_pixels(preset, data))
    ]

    assert different == []


def test_raw_pixels_become_what_their_file_becomes(preset, images):
    preprocessor = server_preprocessor(preset)
    # None has the size of a model's input: such pixels are taken as they are.
    for name in ("skimage/data/chelsea.png", "skimage/data/coins.png", "3 by 500", "256 by 256", "1 by 1"):
        with Image.open(io.BytesIO(images[name])) as image:
            pixels = np.asarray(image)
        pixels = pixels if pixels.ndim == 3 else pixels[:, :, np.newaxis]

        np.testing.assert_array_equal(preprocessor.fit(pixels), preprocessor.decode(images[name]))


def test_other_presets_are_the_same_as_the_first():
    from vistazo_export.networks.zoo import torchvision_models

    alexnet, *others = (
        torchvision_models().get_weight(name).transforms() for name in (PRESETS[0], *SAME_AS_ALEXNETS)
    )

    assert [repr(other) for other in others] == [repr(alexnet)] * len(others)
