"""Hugging Face's description of preprocessing: preprocessor_config.json, as transformers' processors read it.

The steps are those of transformers' image processors that work with Pillow. What a file leaves out is the
processor's own default.
"""

from collections.abc import Mapping
from typing import Any, Final

from vistazo_export.errors import PresetError

HALF: Final = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
IMAGENET: Final = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CLIP: Final = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
# What all processors start from.
GENERAL: Final[dict[str, Any]] = {
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "resample": 3,
}


def _square(edge: int) -> dict[str, int]:
    return {"height": edge, "width": edge}


def _shortest(edge: int) -> dict[str, int]:
    return {"shortest_edge": edge}


def _cropped(edge: int) -> dict[str, Any]:
    return {"do_center_crop": True, "crop_size": _square(edge)}


# By the processor's name without its ending: the defaults of transformers 5.
KINDS: Final[dict[str, dict[str, Any]]] = {
    "Beit": HALF | {"size": _square(224), "crop_size": _square(224)},
    "Bit": CLIP | _cropped(224) | {"size": _shortest(224)},
    "ChineseCLIP": CLIP | _cropped(224) | {"size": _shortest(224)},
    "CLIP": CLIP | _cropped(224) | {"size": _shortest(224)},
    "ConvNext": HALF | {"size": _shortest(384), "crop_pct": 224 / 256},
    "DeiT": HALF | _cropped(224) | {"size": _square(256)},
    "EfficientNet": HALF
    | {"size": _square(346), "crop_size": _square(289), "rescale_offset": False, "include_top": True},
    "Levit": IMAGENET | _cropped(224) | {"size": _shortest(224)},
    "MobileNetV1": HALF | _cropped(224) | {"size": _shortest(256), "resample": 2},
    "MobileNetV2": HALF | _cropped(224) | {"size": _shortest(256), "resample": 2},
    "MobileViT": _cropped(256) | {"size": _shortest(224), "do_flip_channel_order": True},
    "PoolFormer": IMAGENET | _cropped(224) | {"size": _shortest(224), "crop_pct": 0.9},
    "Pvt": IMAGENET | {"size": _square(224)},
    "Segformer": IMAGENET | {"size": _square(512), "resample": 2},
    "Siglip": HALF | {"size": _square(224)},
    "ViT": HALF | {"size": _square(224), "resample": 2},
}
# Of these a size of one number is of both edges; of the others of the shorter.
OF_BOTH_EDGES: Final = ("Beit", "DeiT", "EfficientNet", "Pvt", "Segformer", "ViT")

ENDINGS: Final = ("Pil", "Fast", "ImageProcessor", "FeatureExtractor")

# Pillow's numbers, which `resample` holds.
RESAMPLE: Final = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")

# From this size on ConvNext's processor stretches and does not crop.
CONVNEXT_STRETCHES: Final = 384

# What moves or shapes pixels in a way that no manifest says; harmless where it is false.
UNSERVED: Final = ("do_pad", "do_thumbnail", "do_align_long_axis", "size_divisor")

MARKS: Final = (
    "image_processor_type",
    "feature_extractor_type",
    "image_mean",
    "do_resize",
    "do_normalize",
    "do_rescale",
)


def is_hub_processor(content: Mapping[str, Any]) -> bool:
    """Say whether a file's content is a processor's configuration."""
    return isinstance(content.get("image_processor"), dict) or any(mark in content for mark in MARKS)


def processor_fields(content: Mapping[str, Any], choice: str) -> tuple[dict[str, Any], str]:
    """Return the manifest's fields for what a processor does, and the processor's name.

    Raises PresetError for a processor that is not known, and where what it does cannot be served.
    """
    nested = content.get("image_processor")
    given = nested if isinstance(nested, dict) else content
    named = given.get("image_processor_type") or given.get("feature_extractor_type")
    kind = _kind(named, choice) if named else ""
    if not kind:
        _check_complete(given, choice)
    config = (
        GENERAL | KINDS.get(kind, {}) | {name: value for name, value in given.items() if value is not None}
    )
    for name in UNSERVED:
        if config.get(name):
            raise PresetError(f"{choice}: {name} {config[name]!r} cannot be served")
    fields = _resized(kind, config, choice) | _normalised(kind, config, choice)
    # Where transformers crops, half a pixel is cut off.
    fields["crop_rounding"] = "DOWN"
    return fields, f"{named}'s" if named else "no processor named, read as the general one"


def _kind(named: object, choice: str) -> str:
    kind = str(named)
    for ending in ENDINGS:
        kind = kind.removesuffix(ending)
    if kind not in KINDS:
        raise PresetError(
            f"{choice}: {named} is not among the processors known here ({', '.join(sorted(KINDS))}); write a "
            "TOML file with the manifest's fields that says what it does"
        )
    return kind


def _check_complete(given: Mapping[str, Any], choice: str) -> None:
    """Raise PresetError where a file that names no processor leaves out what would be another's default."""
    steps = {"do_resize": ("size", "resample"), "do_center_crop": ("crop_size",)}
    wanted = [name for step, names in steps.items() if given.get(step) for name in names]
    if given.get("do_normalize", True):
        wanted += ["image_mean", "image_std"]
    missing = [name for name in ("do_resize", *wanted) if given.get(name) is None]
    if missing:
        raise PresetError(
            f"{choice} has no image_processor_type, so what it leaves out is not known: {', '.join(missing)}"
        )
    if "crop_pct" in given or "include_top" in given:
        raise PresetError(
            f"{choice}: crop_pct and include_top are of certain processors; add its image_processor_type"
        )


def _resized(kind: str, config: Mapping[str, Any], choice: str) -> dict[str, Any]:
    """Return the fields of resizing and cropping."""
    crop = _pair(config.get("crop_size"), "crop_size", choice) if config["do_center_crop"] else None
    resample = config["resample"]
    if not isinstance(resample, int) or not 0 <= resample < len(RESAMPLE):
        raise PresetError(f"{choice}: resample must be 0 to {len(RESAMPLE) - 1}, Pillow's, not {resample!r}")
    fields: dict[str, Any] = {"interpolation": RESAMPLE[resample]}
    if not config["do_resize"]:
        if crop is None:
            raise PresetError(
                f"{choice} neither resizes (do_resize) nor crops (do_center_crop), so that its images have "
                "no size; write a TOML file that says how they get one"
            )
        return fields | {"resize_mode": "NO_RESIZE", "crop_height": crop[0], "crop_width": crop[1]}
    shorter, edges, crop = _own_way(kind, config, crop, choice)
    if not shorter:
        crop = crop or edges
        fields["resize_mode"] = "STRETCH"
        if crop != edges:
            fields |= {"resize_height": edges[0], "resize_width": edges[1]}
        return fields | {"crop_height": crop[0], "crop_width": crop[1]}
    if crop is None:
        raise PresetError(
            f"{choice} resizes the shorter edge to {shorter} and does not crop, so that images keep their "
            "shape; write a TOML file that says how they get one size"
        )
    return fields | {
        "resize_mode": "SHORTEST_EDGE",
        "resize_size": shorter,
        "crop_height": crop[0],
        "crop_width": crop[1],
    }


def _own_way(
    kind: str, config: Mapping[str, Any], crop: tuple[int, int] | None, choice: str
) -> tuple[int, tuple[int, int], tuple[int, int] | None]:
    """Return the shorter edge or 0, else height and width, and the crop, as the processor reckons them."""
    shorter, edges = _target(kind, config, choice)
    if kind == "ConvNext":
        return _as_convnext(shorter, config, crop, choice)
    if kind == "Levit" and shorter:
        return int((256 / 224) * shorter), edges, crop
    if kind == "PoolFormer" and config["crop_pct"]:
        if edges[0] != edges[1]:
            raise PresetError(f"{choice}: a PoolFormer size that is not square cannot be served")
        return int((shorter or edges[0]) / config["crop_pct"]), (0, 0), crop
    return shorter, edges, crop


def _target(kind: str, config: Mapping[str, Any], choice: str) -> tuple[int, tuple[int, int]]:
    """Return the shorter edge, or 0 and height and width."""
    size = config.get("size")
    if isinstance(size, int):
        if not kind:
            raise PresetError(f"{choice}: a size of {size} may be of both edges or of the shorter; say which")
        return (0, (size, size)) if kind in OF_BOTH_EDGES else (size, (0, 0))
    if (
        isinstance(size, Mapping)
        and set(size) == {"shortest_edge"}
        and isinstance(size["shortest_edge"], int)
    ):
        return size["shortest_edge"], (0, 0)
    return 0, _pair(size, "size", choice)


def _as_convnext(
    shorter: int, config: Mapping[str, Any], crop: tuple[int, int] | None, choice: str
) -> tuple[int, tuple[int, int], tuple[int, int] | None]:
    """Return what ConvNext's processor makes of its shortest edge: a crop below 384, a stretch from there."""
    if not shorter:
        raise PresetError(f"{choice}: ConvNext's processor needs a size with shortest_edge")
    square = (shorter, shorter)
    if shorter >= CONVNEXT_STRETCHES:
        return 0, square, crop
    if crop is not None and crop != square:
        raise PresetError(f"{choice}: a second crop, to {crop[0]}×{crop[1]}, cannot be served")
    return int(shorter / config["crop_pct"]), (0, 0), square


def _pair(size: object, name: str, choice: str) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and set(size) == {"height", "width"}:
        height, width = size["height"], size["width"]
        if isinstance(height, int) and isinstance(width, int):
            return height, width
    raise PresetError(f"{choice}: {name} must be shortest_edge or height and width in pixels, not {size!r}")


def _normalised(kind: str, config: Mapping[str, Any], choice: str) -> dict[str, Any]:
    """Return the fields of rescaling and normalising, as one mean and std."""
    mean, std = [0.0] * 3, [1.0] * 3
    # MobileViT's processor does not look at them.
    normalises = bool(config["do_normalize"]) and kind != "MobileViT"
    if normalises:
        mean, std = (_per_channel(config.get(name), name, choice) for name in ("image_mean", "image_std"))
    if kind == "EfficientNet" and config["include_top"]:
        again = _per_channel(config.get("image_std"), "image_std", choice)
        std = [one * other for one, other in zip(std, again, strict=True)]
    fields: dict[str, Any] = {"channel_order": "BGR" if config.get("do_flip_channel_order") else "RGB"}
    if not config["do_rescale"]:
        return fields | {"mean": mean, "std": std, "value_range": 255}
    factor = config["rescale_factor"]
    if not isinstance(factor, int | float) or not factor > 0:
        raise PresetError(f"{choice}: rescale_factor must be a number above 0, not {factor!r}")
    if config.get("rescale_offset"):
        mean = [value + 1 for value in mean]
    # Exactly 1 for the usual factor, however many of its digits a file holds.
    share = 1.0 if abs(factor * 255 - 1) < 1e-6 else factor * 255
    return fields | {"mean": [value / share for value in mean], "std": [value / share for value in std]}


def _per_channel(values: object, name: str, choice: str) -> list[float]:
    if isinstance(values, int | float):
        return [float(values)] * 3
    if isinstance(values, list) and all(isinstance(value, int | float) for value in values):
        return [float(value) for value in values]
    raise PresetError(f"{choice}: {name} must be one number for each channel, not {values!r}")
