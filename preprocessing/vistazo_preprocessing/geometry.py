"""Sizes and crops, rounded as torchvision, timm and transformers round them."""

import math

from PIL import Image


def shortest_edge_size(width: int, height: int, edge: int) -> tuple[int, int]:
    """Width and height after the shorter edge became `edge`.

    torchvision.transforms.functional._compute_resized_image_output_size: the longer edge is truncated.
    """
    short, long = (width, height) if width <= height else (height, width)
    new_long = int(edge * long / short)
    return (edge, new_long) if width <= height else (new_long, edge)


def ratio_size(width: int, height: int, to_width: int, to_height: int, *, cover: bool) -> tuple[int, int]:
    """Width and height with the same aspect ratio, to cover `to_width` × `to_height` or to fit inside.

    timm's ResizeKeepRatio: both edges are rounded half to even.
    """
    ratios = (height / to_height, width / to_width)
    ratio = min(ratios) if cover else max(ratios)
    # A strip of one pixel by a million would vanish.
    return max(round(width / ratio), 1), max(round(height / ratio), 1)


def centre_crop(
    image: Image.Image, width: int, height: int, *, fill: tuple[int, ...] = (), down: bool = False
) -> Image.Image:
    """Crop around the centre; pad with `fill`, else with zeros, what is smaller.

    torchvision.transforms.functional.center_crop: Python's round, half to even, of half the excess;
    padding is split with the larger half to the right and below. With `down`, transformers' center_crop: half
    the excess is rounded down, and the larger half of the padding is to the left and above.
    """
    if image.size == (width, height):
        return image
    if image.width < width or image.height < height:
        half = _half_up if down else _half_down
        left = max(half(width - image.width), 0)
        top = max(half(height - image.height), 0)
        colour = fill[0] if len(fill) == 1 else (fill or 0)
        padded = Image.new(image.mode, (max(width, image.width), max(height, image.height)), colour)
        padded.paste(image, (left, top))
        image = padded
    left, top = crop_origin(image.size, width, height, down=down)
    return image.crop((left, top, left + width, top + height))


def crop_origin(size: tuple[int, int], width: int, height: int, *, down: bool) -> tuple[int, int]:
    """Return the left and top of the centre crop of an image of `size`, which is no smaller than the crop."""
    nearest = _half_down if down else _half_to_even
    return nearest(size[0] - width), nearest(size[1] - height)


def _half_down(pixels: int) -> int:
    return pixels // 2


def _half_up(pixels: int) -> int:
    return math.ceil(pixels / 2)


def _half_to_even(pixels: int) -> int:
    return round(pixels / 2)
