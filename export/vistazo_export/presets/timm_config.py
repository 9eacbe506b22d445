"""timm's description of preprocessing: a model's config.json on the hub, or its pretrained_cfg."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vistazo_export.errors import PresetError

# What timm.data.resolve_data_config takes for what a configuration leaves out.
DEFAULTS = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


def is_timm_config(content: Mapping[str, Any]) -> bool:
    """Say whether a file's content is a timm model's configuration."""
    return isinstance(content.get("pretrained_cfg"), dict) or "input_size" in content


def config_fields(content: Mapping[str, Any], choice: str) -> dict[str, Any]:
    """Return the manifest's fields for what timm's create_transform does with a configuration.

    Raises PresetError where that cannot be served.
    """
    nested = content.get("pretrained_cfg")
    given = nested if isinstance(nested, dict) else content
    # As timm takes them: what is empty is as good as missing.
    config: dict[str, Any] = DEFAULTS | {name: given[name] for name in DEFAULTS if given.get(name)}
    size, pct, mode = config["input_size"], config["crop_pct"], config["crop_mode"]
    if not isinstance(size, list | tuple) or len(size) != 3 or not all(isinstance(x, int) for x in size):
        raise PresetError(f"{choice}: input_size must be channels, height and width, not {size!r}")
    if not isinstance(pct, int | float) or not pct > 0:
        raise PresetError(f"{choice}: crop_pct must be a share above 0, not {pct!r}")
    if mode not in {"center", "squash", "border"}:
        raise PresetError(f"{choice}: crop_mode must be center, squash or border, not {mode!r}")
    for name in ("mean", "std"):
        if not isinstance(config[name], list | tuple):
            raise PresetError(f"{choice}: {name} must be one number for each channel, not {config[name]!r}")
    channels, height, width = size
    resized = (math.floor(height / pct), math.floor(width / pct))
    mean, std = _per_channel(config["mean"], channels), _per_channel(config["std"], channels)
    fields = {
        "crop_height": height,
        "crop_width": width,
        "interpolation": config["interpolation"],
        "mean": mean,
        "std": std,
    }
    if mode == "center" and height == width:
        return fields | {"resize_mode": "SHORTEST_EDGE", "resize_size": resized[0]}
    named = {"center": "COVER", "squash": "STRETCH", "border": "FIT"}
    fields |= {"resize_mode": named[mode], "resize_height": resized[0], "resize_width": resized[1]}
    if mode == "border":
        fields["pad_color"] = [round(255 * value) for value in mean]
    return fields


def _per_channel(values: Sequence[float], channels: int) -> list[float]:
    """Return one value for each channel; timm repeats a single one."""
    each = [float(value) for value in values]
    return each * channels if len(each) == 1 else each
