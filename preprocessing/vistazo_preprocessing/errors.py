"""What can go wrong with an image."""


class ImageError(ValueError):
    """The image cannot be used; the message is one line, written for whoever sent it."""
