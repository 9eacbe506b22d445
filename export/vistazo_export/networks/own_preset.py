"""Networks whose images are prepared as the user says, and not as published."""

from dataclasses import replace

from vistazo_export.errors import PresetError
from vistazo_export.networks import zoo
from vistazo_export.presets.preprocess import NONE, Described, preprocessing_for, read_preprocess
from vistazo_export.presets.preset import from_proto, to_input
from vistazo_proto.manifest_pb2 import Input, Preprocessing

IMAGENET_SIZE = 224
"""Of the input, in pixels, where nothing says another."""


def with_preprocess(recipe: zoo.Recipe, choice: str) -> zoo.Recipe:
    """Return the recipe of a network whose images are prepared as `choice` says.

    The size is the recipe's where the description leaves it open. Raises PresetError.
    """
    if choice == NONE:
        raise PresetError(f"an exported network takes images, so --preprocess {NONE} is for `vistazo import`")
    described, preset = read_preprocess(choice), recipe.preset
    # The network takes floats; of what size, the description may say.
    height = _size(described.fields.get("crop_height")) or preset.height
    width = _size(described.fields.get("crop_width")) or preset.width
    if not height and not width and described.is_usual:
        height = width = IMAGENET_SIZE
    if not height or not width:
        raise PresetError(
            f"the preprocessing {described.origin}: the size of {recipe.architecture}'s images is not known; "
            "say crop_height and crop_width"
        )
    image = Input(
        dtype="FP32",
        channels=_channels(described, recipe),
        height=height,
        width=width,
        tensor=recipe.architecture,
    )
    return with_preprocessing(recipe, preprocessing_for(described, image), described.origin)


def with_preprocessing(recipe: zoo.Recipe, preprocessing: Preprocessing, origin: str) -> zoo.Recipe:
    """Return the recipe of a network whose images are prepared as a manifest says."""
    chosen = from_proto(preprocessing, len(preprocessing.mean))
    return replace(
        recipe,
        preset=chosen,
        transforms=lambda image: to_input(image, chosen),
        preset_from=origin,
        preset_is_told=True,
    )


def _channels(described: Described, recipe: zoo.Recipe) -> int:
    """Return the network's channels; of one that the user's code makes, those of the mean."""
    mean = described.fields.get("mean")
    if recipe.is_own_code and isinstance(mean, list | tuple) and len(mean) in {1, 3}:
        return len(mean)
    return recipe.preset.channels


def _size(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
