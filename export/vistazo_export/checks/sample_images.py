"""Real images for the parity checks, all shipped inside scikit-image and scikit-learn."""

from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from vistazo_export.errors import ExportError
from vistazo_export.networks import digits

# Of different sizes and shapes; in colour and in grey; JPEG and PNG.
PHOTOGRAPHS = (
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/brick.png"),
    ("skimage", "data/camera.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/coins.png"),
    ("skimage", "data/gravel.png"),
    ("skimage", "data/hubble_deep_field.jpg"),
    ("skimage", "data/ihc.png"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/retina.jpg"),
    ("skimage", "data/rocket.jpg"),
)

DIGITS = 40
"""Held-out digits compared for a network that takes grey images."""


def sample_images(channels: int) -> list[Image.Image]:
    """Return real images for a network with 3 (photographs) or 1 (handwritten digits) channels."""
    if channels == 1:
        return [Image.fromarray(image) for image in digits.held_out().images[:DIGITS]]
    return [_photograph(package, path) for package, path in PHOTOGRAPHS]


def _photograph(package: str, path: str) -> Image.Image:
    # The files, not skimage.data's functions: those go to the network for some of them.
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    file = Path(spec.origin).parent / path
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except OSError as error:
        raise ExportError(f"cannot read the sample photograph {file}: {error}") from error
