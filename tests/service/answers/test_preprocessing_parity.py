"""The server's Preprocessor equals torchvision's own presets to the bit, on real images."""

import io
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from support.photographs import PHOTOGRAPHS, parity_images
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


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    assert len(PHOTOGRAPHS) >= 20
    return parity_images()


@pytest.fixture(scope="module", params=PRESETS)
def preset(request):
    """torchvision's own transforms for published weights."""
    from vistazo_export.presets.torchvision_import import torchvision_models

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
    from vistazo_export.presets.torchvision_import import torchvision_models

    alexnet, *others = (
        torchvision_models().get_weight(name).transforms() for name in (PRESETS[0], *SAME_AS_ALEXNETS)
    )

    assert [repr(other) for other in others] == [repr(alexnet)] * len(others)
