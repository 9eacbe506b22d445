"""Sizes and crops, rounded as torchvision rounds them."""

from PIL import Image


def shortest_edge_size(width: int, height: int, edge: int) -> tuple[int, int]:
    """Width and height after the shorter edge became `edge`.

    torchvision.transforms.functional._compute_resized_image_output_size: the longer edge is truncated.
    """
    short, long = (width, height) if width <= height else (height, width)
    new_long = int(edge * long / short)
    return (edge, new_long) if width <= height else (new_long, edge)


def centre_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """Crop around the centre; pad with zeros what is smaller.

    torchvision.transforms.functional.center_crop: Python's round, half to even, of half the excess;
    padding is split with the larger half to the right and below.
    """
    if image.size == (width, height):
        return image
    if image.width < width or image.height < height:
        left = max((width - image.width) // 2, 0)
        top = max((height - image.height) // 2, 0)
        padded = Image.new(image.mode, (max(width, image.width), max(height, image.height)))
        padded.paste(image, (left, top))
        image = padded
    left = round((image.width - width) / 2.0)
    top = round((image.height - height) / 2.0)
    return image.crop((left, top, left + width, top + height))
