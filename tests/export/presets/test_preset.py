"""The preprocessing on record does to an image, bit for bit, what the weights' transforms do."""

import numpy as np
import pytest
import torch
from PIL import Image

from vistazo_export.checks.sample_images import sample_images
from vistazo_export.errors import PresetError
from vistazo_export.networks import lenet
from vistazo_export.presets.preset import preset_of, to_pixels
from vistazo_export.presets.torchvision_import import torchvision_models

torchvision_models()

from torchvision.transforms import InterpolationMode  # noqa: E402 - torchvision imports only after the above
from torchvision.transforms._presets import ImageClassification, ObjectDetection  # noqa: E402

# Neither shifts nor scales, so what comes out are the pixels divided by 255.
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.mark.parametrize(
    "transforms",
    [
        pytest.param(ImageClassification(crop_size=224, **PLAIN), id="resnet18"),
        pytest.param(ImageClassification(crop_size=299, resize_size=342, **PLAIN), id="inception_v3"),
        pytest.param(
            ImageClassification(
                crop_size=384, resize_size=384, interpolation=InterpolationMode.BICUBIC, **PLAIN
            ),
            id="bicubic",
        ),
        pytest.param(
            ImageClassification(
                crop_size=65, resize_size=70, interpolation=InterpolationMode.NEAREST, **PLAIN
            ),
            id="nearest",
        ),
        pytest.param(ImageClassification(crop_size=225, resize_size=100, **PLAIN), id="padded"),
    ],
)
def test_pixels_equal_torchvisions_to_the_bit(transforms: ImageClassification):
    preset = preset_of(transforms)
    for photograph in sample_images(3):
        for image in (photograph, photograph.rotate(90, expand=True), photograph.crop((0, 0, 37, 301))):
            expected = (transforms(image) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()

            np.testing.assert_array_equal(to_pixels(image, preset), expected)


def test_lenets_pixels_equal_those_it_was_trained_on():
    for image in sample_images(1):
        trained_on = lenet.transforms(image) * lenet.PRESET.std[0] + lenet.PRESET.mean[0]
        expected = (trained_on * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()

        np.testing.assert_array_equal(to_pixels(image, lenet.PRESET), expected)


def test_the_sample_photographs_are_of_many_sizes():
    sizes = {image.size for image in sample_images(3)}

    assert len(sizes) >= 8
    assert any(width > height for width, height in sizes)
    assert any(width == height for width, height in sizes)


@pytest.mark.parametrize(
    ("transforms", "complaint"),
    [
        (ObjectDetection(), "ObjectDetection is no classification preset"),
        (ImageClassification(crop_size=224, mean=(0.5, 0.5), std=(0.5, 0.5)), r"mean \[0.5, 0.5\]"),
    ],
)
def test_a_preset_that_cannot_be_served_is_refused(transforms: torch.nn.Module, complaint: str):
    with pytest.raises(PresetError, match=complaint):
        preset_of(transforms)


@pytest.mark.parametrize("resize", [[256], [230, 200]], ids=["shorter edge", "stretched"])
def test_a_crop_that_is_not_square_equals_torchvisions_to_the_bit(resize: list[int]):
    transforms = ImageClassification(crop_size=224, **PLAIN)
    transforms.crop_size, transforms.resize_size = [224, 192], resize
    preset = preset_of(transforms)

    for image in sample_images(3):
        expected = (transforms(image) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(to_pixels(image, preset), expected)


def test_a_grey_image_becomes_three_equal_channels():
    pixels = to_pixels(Image.linear_gradient("L"), preset_of(ImageClassification(crop_size=224)))

    assert pixels.shape == (224, 224, 3)
    assert (pixels[..., 0] == pixels[..., 2]).all()
