"""What presets beyond torchvision's ask for: other ways to resize, crop and pad, the order of channels."""

import numpy as np
import pytest
from PIL import Image

from vistazo_preprocessing.errors import ImageError
from vistazo_preprocessing.geometry import centre_crop, ratio_size
from vistazo_preprocessing.preprocessor import Preprocessor
from vistazo_preprocessing.spec import Layout, PreprocessSpec, ResizeMode

RED, BLUE = (200, 10, 30), (30, 10, 200)


def preprocessor(mode, *, height=8, width=8, max_pixels=1_000_000, channels=3, **rest) -> Preprocessor:
    sizes = {"resize_size": 0, "interpolation": Image.Resampling.BILINEAR} | rest
    spec = PreprocessSpec(height=height, width=width, channels=channels, resize_mode=mode, **sizes)
    return Preprocessor(spec, max_pixels=max_pixels)


def plain(width, height, colour=RED) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def test_an_image_that_fits_is_padded_in_the_colour_asked_for():
    made = preprocessor(ResizeMode.FIT, resize_height=8, resize_width=8, pad_color=(1, 2, 3)).fit(
        plain(32, 16)
    )

    assert (made[2:6] == RED).all()
    assert (made[:2] == (1, 2, 3)).all()
    assert (made[6:] == (1, 2, 3)).all()


def test_a_grey_image_is_padded_in_its_one_channel():
    made = preprocessor(ResizeMode.FIT, channels=1, resize_height=8, resize_width=8, pad_color=(7,)).fit(
        np.full((16, 32, 1), 99, np.uint8)
    )

    assert set(made.ravel().tolist()) == {7, 99}


def test_an_image_that_covers_is_cropped_and_never_padded():
    made = preprocessor(
        ResizeMode.COVER, height=6, width=8, resize_height=6, resize_width=8, pad_color=(1, 2, 3)
    ).fit(plain(64, 16))

    assert made.shape == (6, 8, 3)
    assert (made == RED).all()


@pytest.mark.parametrize(
    ("size", "cover", "fit"),
    [
        ((40, 30), (11, 8), (8, 6)),
        ((30, 40), (8, 11), (6, 8)),
        ((9, 9), (8, 8), (8, 8)),
        ((1000, 1), (8000, 8), (8, 1)),
    ],
)
def test_the_aspect_ratio_is_kept(size, cover, fit):
    assert ratio_size(*size, 8, 8, cover=True) == cover
    assert ratio_size(*size, 8, 8, cover=False) == fit


def test_edges_of_their_own_stretch_before_the_crop():
    across = np.tile(np.linspace(0, 255, 40, dtype=np.uint8)[None, :, None], (30, 1, 3))
    made = preprocessor(ResizeMode.STRETCH, resize_height=10, resize_width=12).fit(across)
    expected = np.asarray(Image.fromarray(across).resize((12, 10), Image.Resampling.BILINEAR))[1:9, 2:10]

    np.testing.assert_array_equal(made, expected)


def test_what_is_not_resized_is_cut_or_padded():
    cut = np.random.default_rng(1).integers(0, 256, (12, 20, 3), np.uint8)
    made = preprocessor(ResizeMode.NO_RESIZE)

    np.testing.assert_array_equal(made.fit(cut), cut[2:10, 6:14])
    assert (made.fit(plain(4, 20))[:, 2:6] == RED).all()
    assert not made.fit(plain(4, 20))[:, :2].any()


@pytest.mark.parametrize(("excess", "even", "down"), [(1, 0, 0), (2, 1, 1), (3, 2, 1), (5, 2, 2), (7, 4, 3)])
def test_half_a_pixel_goes_where_the_library_puts_it(excess, even, down):
    columns = Image.fromarray(np.arange(8 + excess, dtype=np.uint8)[None])

    assert centre_crop(columns, 8, 1).getpixel((0, 0)) == even
    assert centre_crop(columns, 8, 1, down=True).getpixel((0, 0)) == down


@pytest.mark.parametrize(("down", "left"), [(False, 1), (True, 2)])
def test_the_larger_half_of_the_padding_goes_where_the_library_puts_it(down, left):
    padded = np.asarray(centre_crop(Image.new("L", (5, 1), 9), 8, 1, down=down))

    assert padded.ravel().tolist() == [0] * left + [9] * 5 + [0] * (3 - left)


@pytest.mark.parametrize("layout", list(Layout))
def test_bytes_in_blue_green_red_are_no_pixels_as_they_are(layout):
    made = preprocessor(ResizeMode.STRETCH, layout=layout, bgr=True)
    values = made.model_input(plain(8, 8))

    assert not made.takes_pixels
    assert values.flags.c_contiguous
    assert (values == np.array(BLUE).reshape((3, 1, 1) if layout is Layout.NCHW else 3)).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_caffes_numbers_are_exact(dtype):
    mean = (104.0, 117.0, 123.0)
    made = preprocessor(
        ResizeMode.STRETCH, dtype=dtype, bgr=True, value_range=255, mean=mean, std=(1.0, 1.0, 1.0)
    )
    values = made.model_input(plain(8, 8))

    assert values.dtype == dtype
    assert (values == np.array(BLUE) - mean).all()


def test_a_strip_may_not_grow_beyond_the_limit_where_it_covers():
    made = preprocessor(ResizeMode.COVER, resize_height=8, resize_width=8, max_pixels=10_000)

    with pytest.raises(ImageError, match="after resizing, 8000×8"):
        made.fit(plain(1000, 1))
    assert preprocessor(ResizeMode.FIT, resize_height=8, resize_width=8, max_pixels=10_000).fit(
        plain(1000, 1)
    ).shape == (8, 8, 3)
