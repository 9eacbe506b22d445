"""Where a torch module and its weights come from.

`resolve` says what an export would use, without building or downloading anything; `load` gets it.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from PIL import Image
from torch import Tensor, nn

from vistazo_export.checkpoints import checkpoint
from vistazo_export.checkpoints.torch_files import Contents
from vistazo_export.errors import (
    LabelsError,
    PresetError,
    UnknownNetworkError,
    WeightsError,
    WeightsUnavailableError,
)
from vistazo_export.networks import efficientnet_lite, lenet, own_code, timm_networks
from vistazo_export.networks.checkpoint_options import NOTHING_SAID, CheckpointOptions, image_size, value_of
from vistazo_export.networks.download import fetch_checkpoint, sha256_of
from vistazo_export.networks.nin import NetworkInNetwork
from vistazo_export.presets.preset import Preset, preset_of
from vistazo_export.presets.torchvision_import import torchvision_models
from vistazo_export.progress import SILENT, Progress
from vistazo_preprocessing.spec import ResizeMode

UNTRAINED_SEED = 0

OWN_NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    efficientnet_lite.NAME: efficientnet_lite.EfficientNetLite0,
    "lenet": lenet.LeNet,
    "nin": NetworkInNetwork,
}
"""The networks that torchvision lacks, each as a function of the number of classes."""

RENORMALISING = frozenset({"googlenet", "inception_v3"})
"""Networks whose builder may make them normalise their input a second time, as `transform_input` says."""


@dataclass(frozen=True)
class Weights:
    """What a network's numbers are, or will be once loaded."""

    source: Literal["pretrained", "checkpoint", "untrained"]
    name: str
    """Such as "ResNet18_Weights.IMAGENET1K_V1", the file's name, or "seed 0"."""
    url: str = ""
    """Where it is published; empty where nothing is downloaded."""
    sha256: str = ""
    """Lower-case hex digest of the weights file; empty for untrained and before a download."""
    path: Path | None = None
    """The user's file, for a checkpoint."""
    options: CheckpointOptions = NOTHING_SAID


@dataclass(frozen=True)
class Recipe:
    """Everything about a network except its numbers."""

    architecture: str
    weights: Weights
    labels: tuple[str, ...]
    preset: Preset
    transforms: Callable[[Image.Image], Tensor]
    """The original preprocessing: a Pillow image in, normalised float C×H×W out."""
    preset_from: str = ""
    """Whose preprocessing that is: published weights, or what the user named instead."""
    preset_is_told: bool = False
    """Whether the user named it."""
    is_own_code: bool = False
    """Whether the network comes from a function of the user's, which may have changed."""

    def untrained(self) -> "Recipe":
        """Return the same network with seeded random numbers instead of its weights."""
        return replace(self, weights=Weights("untrained", f"seed {UNTRAINED_SEED}"))


@dataclass(frozen=True)
class LoadedNetwork:
    """A network ready for inference."""

    recipe: Recipe
    """With the digest of the weights filled in."""
    module: nn.Module
    """In eval mode: normalised float N×C×H×W in, logits N×classes out."""


def folder_name(architecture: str) -> str:
    """Return what a network is called in the repository where its user names it no other way."""
    if architecture.startswith(timm_networks.PREFIX):
        return architecture.replace(":", "-", 1)
    return architecture.rpartition(":")[2] if own_code.is_own_code(architecture) else architecture


def network_names() -> list[str]:
    """Return the names of all networks that can be exported, sorted."""
    models = torchvision_models()
    return sorted([*OWN_NETWORKS, *models.list_models(module=models)])


def resolve(
    architecture: str,
    weights: str = "pretrained",
    labels: Sequence[str] | None = None,
    *,
    options: CheckpointOptions = NOTHING_SAID,
) -> Recipe:
    """Return what exporting `architecture` means; nothing is built or downloaded. `options` are of a file.

    It is the name of a network here or in torchvision, "timm:" and one in timm, or "package.module:function".
    `weights` is "pretrained", "untrained", the full name of published weights such as
    "ResNet50_Weights.IMAGENET1K_V1", or the path of a file. `labels` replaces the published ones and
    sets the number of classes. Raises UnknownNetworkError, LabelsError, PresetError or WeightsError.
    """
    if labels is not None and len(labels) == 1:
        raise LabelsError(
            f"one label ({labels[0]!r}) is no choice: softmax gives a single class 100 % whatever the image "
            "shows; give at least two labels. A head of one class that was trained with a sigmoid is binary, "
            "which --weights FILE cannot export"
        )
    if own_code.is_own_code(architecture):
        published = _of_own_code(architecture, labels)
    else:
        published = _published(architecture, weights, image_size(options))
    if not published.labels and labels is None:
        raise LabelsError(f"the labels of {architecture} are not known: say --labels FILE, one a class")
    if weights == "untrained":
        chosen = published.untrained()
    elif weights in {"pretrained", published.weights.name}:
        known = len(published.labels)
        if labels is not None and known and len(labels) != known:
            raise LabelsError(
                f"{architecture}'s pretrained weights have {known} classes, but "
                f"{len(labels)} labels were given; labels of your own go with --weights FILE"
            )
        chosen = published
    else:
        path = Path(weights)
        if not path.is_file():
            raise WeightsError(f"no weights file {weights} (nor is it 'pretrained' or 'untrained')")
        own = Weights(
            "checkpoint",
            path.name,
            sha256=sha256_of(path),
            path=path,
            options=options,
        )
        chosen = replace(published, weights=own)
    return chosen if labels is None else replace(chosen, labels=tuple(labels))


def has_mirrors(recipe: Recipe) -> bool:
    """Say whether its weights are a file that is downloaded, so that a mirror may have it, too."""
    other = recipe.architecture in OWN_NETWORKS or recipe.architecture.startswith(timm_networks.PREFIX)
    return bool(recipe.weights.url) and not other


def load(recipe: Recipe, *, mirror: str | None = None, progress: Progress = SILENT) -> LoadedNetwork:
    """Build the network and fill in its weights, downloading published ones into torch.hub's cache.

    Raises WeightsUnavailableError where they were never published or cannot be downloaded, and
    WeightsError where the file is damaged or does not fit.
    """
    if recipe.weights.source == "pretrained" and not recipe.is_own_code:
        return _load_pretrained(recipe, mirror, progress)

    progress.stage("building")
    if recipe.is_own_code:
        return _load_own_code(recipe, progress)
    path = recipe.weights.path
    if path is None:
        module = _build(recipe, seed=_seed_of(recipe.weights))
    else:
        contents = checkpoint.read_checkpoint(path)
        module = _build(recipe, seed=UNTRAINED_SEED)
        _fit(module, contents, recipe, progress)
    return LoadedNetwork(recipe, module.eval())


def _fit(module: nn.Module, contents: Contents, recipe: Recipe, progress: Progress) -> None:
    options = recipe.weights.options
    checkpoint.fit_checkpoint(
        module,
        contents,
        origin=str(recipe.weights.path or recipe.weights.name),
        key=options.state_dict_key,
        ignore=options.ignore_keys,
        progress=progress,
    )


def _published(architecture: str, weights: str, size: int = 0) -> Recipe:
    """Return the recipe with the published weights named `weights`, else the default ones.

    `size`: the side of the images, where it is not that of the published weights; they are then resized to as
    much more than the crop as for these.
    """
    if architecture == "lenet":
        embedded = Weights("pretrained", lenet.WEIGHTS_NAME, sha256=lenet.WEIGHTS_SHA256)
        return Recipe("lenet", embedded, lenet.LABELS, lenet.PRESET, lenet.transforms, lenet.WEIGHTS_NAME)
    if architecture.startswith(timm_networks.PREFIX):
        return _of_timm(architecture)
    names = network_names()
    if architecture not in names:
        close = difflib.get_close_matches(architecture.lower(), names, n=3)
        hint = (
            f"did you mean {' or '.join(close)}?"
            if close
            else f"{', '.join(OWN_NETWORKS)} or any torchvision classifier"
        )
        raise UnknownNetworkError(f"unknown network {architecture!r}: {hint}")

    models = torchvision_models()
    if architecture == efficientnet_lite.NAME:
        return _of_efficientnet_lite()
    if architecture == "nin":
        imagenet = models.ResNet18_Weights.IMAGENET1K_V1
        return Recipe("nin", Weights("pretrained", "none"), *_labels_and_preset(imagenet), str(imagenet))
    known = models.get_model_weights(architecture)
    chosen = next((member for member in known if str(member) == weights), known.DEFAULT)
    published = Weights("pretrained", str(chosen), chosen.url)
    told = f"{chosen} at {size}×{size}" if size else str(chosen)
    return Recipe(architecture, published, *_labels_and_preset(chosen, size), told)


def _of_efficientnet_lite() -> Recipe:
    published = Weights(
        "pretrained",
        efficientnet_lite.WEIGHTS_NAME,
        efficientnet_lite.WEIGHTS_URL,
        sha256=efficientnet_lite.WEIGHTS_SHA256,
    )
    # Sizes and bicubic as for the larger family; mean and std are Lite's own.
    family = torchvision_models().EfficientNet_B0_Weights.IMAGENET1K_V1
    transforms = family.transforms(**efficientnet_lite.TRANSFORMS)
    labels = tuple(family.meta["categories"])
    return Recipe(
        efficientnet_lite.NAME, published, labels, preset_of(transforms), transforms, published.name
    )


def _timm_network(architecture: str) -> timm_networks.TimmNetwork:
    # Also imports torchvision, which timm would fail to where that needs help.
    imagenet = torchvision_models().ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    return timm_networks.timm_network(architecture.removeprefix(timm_networks.PREFIX), tuple(imagenet))


def _of_timm(architecture: str) -> Recipe:
    network = _timm_network(architecture)
    published = Weights("pretrained", network.weights or "none", network.url)
    # With the tag, so that the default's change in a later timm is no other network of the same name.
    full = timm_networks.PREFIX + network.name
    name = network.weights or f"timm {network.name}"
    return Recipe(full, published, network.labels, network.preset, network.transforms, name)


def _of_own_code(architecture: str, labels: Sequence[str] | None) -> Recipe:
    """Return a recipe without preprocessing, which the user has to say."""

    def unknown(_image: Image.Image) -> Tensor:
        raise PresetError(f"{architecture} has no preprocessing of its own")

    # The function's own numbers: neither published nor in a file.
    own = Weights("pretrained", architecture)
    open_preset = Preset(0, 0, 3, ResizeMode.NO_RESIZE, 0, Image.Resampling.BILINEAR)
    return Recipe(architecture, own, tuple(labels or ()), open_preset, unknown, is_own_code=True)


def _load_own_code(recipe: Recipe, progress: Progress) -> LoadedNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(UNTRAINED_SEED)
        module = own_code.call(recipe.architecture)
    weights = recipe.weights
    if weights.path is not None:
        _fit(module, checkpoint.read_checkpoint(weights.path), recipe, progress)
    elif weights.source == "pretrained":
        weights = replace(weights, source="checkpoint", sha256=own_code.digest_of(module))
    module.eval()
    own_code.check_logits(module, recipe.architecture, recipe.preset, len(recipe.labels))
    return LoadedNetwork(replace(recipe, weights=weights), module)


class _PublishedWeights(Protocol):
    """A member of torchvision's weights enums."""

    meta: dict[str, Any]

    def transforms(self, **options: int) -> Callable[[Image.Image], Tensor]:
        """Return the preprocessing that goes with the weights, where no option says otherwise."""


def _labels_and_preset(
    weights: _PublishedWeights, size: int = 0
) -> tuple[tuple[str, ...], Preset, Callable[[Image.Image], Tensor]]:
    transforms = weights.transforms()
    if size:
        usual = preset_of(transforms)
        resize_size = round(usual.resize_size * size / usual.height)
        transforms = weights.transforms(crop_size=size, resize_size=resize_size)
    return tuple(weights.meta["categories"]), preset_of(transforms), transforms


def _load_pretrained(recipe: Recipe, mirror: str | None, progress: Progress) -> LoadedNetwork:
    if recipe.architecture == "nin":
        raise WeightsUnavailableError("nin has no published torch weights")
    if recipe.architecture in OWN_NETWORKS:
        progress.stage("building")
        is_lenet = recipe.architecture == "lenet"
        file = lenet.WEIGHTS_FILE if is_lenet else efficientnet_lite.weights_file()
        if sha256_of(file) != recipe.weights.sha256:
            raise WeightsError(f"{file} is damaged: its SHA-256 is not the recorded one")
        module = _build(recipe, seed=UNTRAINED_SEED)
        _fit(module, checkpoint.read_checkpoint(file), recipe, progress)
        return LoadedNetwork(recipe, module.eval())

    if recipe.architecture.startswith(timm_networks.PREFIX):
        progress.stage("building")
        network = _timm_network(recipe.architecture)
        module = timm_networks.build(network, recipe.preset, classes=network.classes, pretrained=True)
        return LoadedNetwork(recipe, module.eval())

    cached = fetch_checkpoint(recipe.weights.url, mirror=mirror, progress=progress)
    progress.stage("building")
    # torchvision unpickles its downloads in full, and eight digits of a hash stop accidents, not a
    # hostile mirror: what is not plain tensors ends here.
    checkpoint.read_state_dict(cached.path)
    models = torchvision_models()
    weights = models.get_weight(recipe.weights.name)
    module = models.get_model(recipe.architecture, weights=weights, progress=False)
    loaded = replace(recipe, weights=replace(recipe.weights, sha256=cached.sha256))
    return LoadedNetwork(loaded, module.eval())


def _seed_of(weights: Weights) -> int:
    """Return the seed in a name such as "seed 0"."""
    word, _, number = weights.name.partition(" ")
    if word != "seed" or not number.isdigit():
        raise WeightsError(f"untrained weights need a name such as 'seed 0', not {weights.name!r}")
    return int(number)


def _build(recipe: Recipe, *, seed: int) -> nn.Module:
    """Return the network with seeded random numbers; the global random state is as it was."""
    classes, said = len(recipe.labels), recipe.weights.options.builder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if recipe.architecture in OWN_NETWORKS:
            if said:
                raise WeightsError(f"{recipe.architecture} has no builder options such as {said[0][0]}")
            return OWN_NETWORKS[recipe.architecture](classes)
        if recipe.architecture.startswith(timm_networks.PREFIX):
            if said:
                raise WeightsError(f"{recipe.architecture} takes no --builder option")
            network = _timm_network(recipe.architecture)
            return timm_networks.build(network, recipe.preset, classes=classes)
        options = _builder_options(recipe) | {key: value_of(text) for key, text in said}
        try:
            module = torchvision_models().get_model(
                recipe.architecture, weights=None, num_classes=classes, **options
            )
        except (TypeError, ValueError) as error:
            if not said:
                raise
            told = " ".join(str(error).split())[:200]
            raise WeightsError(f"{recipe.architecture} cannot be built with these options: {told}") from error
        return cast("nn.Module", module)


def _builder_options(recipe: Recipe) -> dict[str, Any]:
    """Return what some builders must be told so that the network computes as it did where it was trained."""
    if recipe.architecture in RENORMALISING:
        said = dict(recipe.weights.options.builder)
        if (
            recipe.weights.source == "checkpoint"
            and "transform_input" not in said
            and not _is_published(recipe)
        ):
            raise WeightsError(
                f"{recipe.architecture} may normalise its input a second time, which changes every answer; "
                "no file tells: say --builder transform_input=true for weights that began as the published "
                "ones, or --builder transform_input=false, torchvision's default without them"
            )
        # Auxiliary heads are for training: their keys are left aside.
        return {"transform_input": True, "aux_logits": False, "init_weights": True}
    if recipe.architecture.startswith("vit_"):
        # A vision transformer's parameters depend on the size of its input.
        if recipe.preset.height != recipe.preset.width:
            raise PresetError(f"{recipe.architecture} takes square images only")
        return {"image_size": recipe.preset.height}
    return {}


def _is_published(recipe: Recipe) -> bool:
    """Say whether the user's file is one of torchvision's own, whose names end with their digest's begin."""
    if recipe.architecture in OWN_NETWORKS:
        return False
    known = torchvision_models().get_model_weights(recipe.architecture)
    digests = [member.url.rpartition("-")[2].removesuffix(".pth") for member in known]
    return any(len(digest) >= 8 and recipe.weights.sha256.startswith(digest) for digest in digests)
