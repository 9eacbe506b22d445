"""What can go wrong with an image."""


class ImageError(ValueError):
    """The image cannot be used; the message is one line, written for whoever sent it."""


def broken(reason: str) -> ImageError:
    """Return the error of a file of the right kind whose pixels cannot be had."""
    return ImageError(f"the image cannot be decoded: {reason}")
