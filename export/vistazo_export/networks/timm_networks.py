"""timm's networks, as `timm:NAME`: its own preprocessing, labels, hub code and cache. The extra is `timm`.

torchvision must have been imported before, by `torchvision_import`: timm imports it as it is.
"""

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from google.protobuf import json_format
from PIL import Image
from torch import Tensor, nn

from vistazo_export.errors import UnknownNetworkError, WeightsUnavailableError
from vistazo_export.presets.preset import Preset, from_proto
from vistazo_export.presets.timm_config import config_fields
from vistazo_proto.manifest_pb2 import Preprocessing

PREFIX = "timm:"

HUB = "https://huggingface.co/"


@dataclass(frozen=True)
class TimmNetwork:
    """What timm says of a network and its default weights."""

    name: str
    """In timm, such as "resnet18.a1_in1k"."""
    weights: str
    """Of the published weights; empty: there are none."""
    url: str
    labels: tuple[str, ...]
    """One for each class; empty: not known."""
    classes: int
    preset: Preset
    transforms: Callable[[Image.Image], Tensor]


def timm_network(name: str, imagenet: tuple[str, ...]) -> TimmNetwork:
    """Return what timm says of the network `name`; `imagenet` are the labels of ImageNet-1k.

    Nothing is built or downloaded. Raises UnknownNetworkError where timm is missing or has none such.
    """
    timm, data = _timm("timm"), _timm("timm.data")
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        close = difflib.get_close_matches(base.lower(), timm.list_models(), n=3)
        hint = f": did you mean {' or '.join(PREFIX + one for one in close)}?" if close else ""
        raise UnknownNetworkError(f"timm {timm.__version__} has no network {name!r}{hint}")
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        tags = [one.partition(".")[2] for one in timm.list_pretrained(base + ".*")]
        raise UnknownNetworkError(
            f"timm has no weights {tag!r} of {base}, but {', '.join(filter(None, tags)) or 'none'}"
        ) from error
    # As create_model takes it without a tag, so that the manifest names the weights.
    full = f"{base}.{config.tag}" if config.tag else base
    resolved = data.resolve_data_config(pretrained_cfg=config.to_dict())
    record = json_format.ParseDict(config_fields(resolved, name), Preprocessing())
    return TimmNetwork(
        name=full,
        weights=f"timm/{full}" if config.has_weights else "",
        url=HUB + config.hf_hub_id if config.hf_hub_id else (config.url or ""),
        labels=_labels(data, config, imagenet),
        classes=config.num_classes,
        preset=from_proto(record, resolved["input_size"][0]),
        transforms=data.create_transform(**resolved),
    )


def build(network: TimmNetwork, preset: Preset, *, classes: int, pretrained: bool = False) -> nn.Module:
    """Return the network for so many classes and images of the preset's size.

    Pretrained weights come through timm's own code and its cache. Raises WeightsUnavailableError where they
    cannot be had.
    """
    options: dict[str, Any] = {"num_classes": classes, "in_chans": preset.channels}
    if (preset.height, preset.width) != (network.preset.height, network.preset.width) and _timm(
        "timm"
    ).get_pretrained_cfg(network.name).fixed_input_size:
        # A vision transformer's parameters depend on the size of its input.
        options["img_size"] = (preset.height, preset.width)
    create = _timm("timm").create_model
    if not pretrained:
        return cast("nn.Module", create(network.name, pretrained=False, **options))
    if not network.weights:
        raise WeightsUnavailableError(f"timm has no published weights of {network.name}")
    try:
        return cast("nn.Module", create(network.name, pretrained=True, **options))
    # The hub's client has errors of many kinds, of its own and of the libraries below it.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsUnavailableError(f"timm cannot get {network.weights}: {reason}") from error


def _timm(module: str) -> Any:  # noqa: ANN401 - whose types come with an extra
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise UnknownNetworkError("timm is not installed: pip install 'vistazo[timm]'") from error


def _labels(data: Any, config: Any, imagenet: tuple[str, ...]) -> tuple[str, ...]:  # noqa: ANN401 - timm's
    """Return the labels of the published weights; none where timm does not tell."""
    if config.label_names and len(config.label_names) == config.num_classes:
        return tuple(config.label_names)
    subset = data.infer_imagenet_subset(config.to_dict())
    if subset is None:
        return ()
    if subset == "imagenet-1k":
        return imagenet
    info = data.ImageNetInfo(subset)
    return tuple(info.index_to_description(index) for index in range(info.num_classes()))
