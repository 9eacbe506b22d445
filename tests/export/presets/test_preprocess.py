"""One description of preprocessing from whatever file people have: pixels are those of its own library."""

import json
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

from vistazo_export.checks.sample_images import sample_images
from vistazo_export.errors import PresetError
from vistazo_export.networks import zoo
from vistazo_export.networks.own_preset import with_preprocess
from vistazo_export.presets.preprocess import preprocessing_for, read_preprocess, sentence
from vistazo_export.presets.preset import from_proto, to_input, to_pixels
from vistazo_export.presets.torchvision_import import torchvision_models
from vistazo_proto.manifest_pb2 import Input, Preprocessing

torchvision_models()

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
TOLD = {
    "resize_mode": "SHORTEST_EDGE",
    "resize_size": 256,
    "interpolation": "bilinear",
    "mean": IMAGENET["mean"],
    "std": IMAGENET["std"],
}


def written(folder, content, name="told.json"):
    """Write a description to a file; return its path as --preprocess takes it."""
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


def preprocessing(choice, height=224, width=224, channels=3, dtype="FP32") -> Preprocessing:
    described = read_preprocess(choice)
    height = described.fields.get("crop_height", height)
    width = described.fields.get("crop_width", width)
    image = Input(tensor="images", height=height, width=width, channels=channels, dtype=dtype)
    return preprocessing_for(described, image)


def pictures() -> list[Image.Image]:
    """Photographs, upright and lying, odd in size, and one smaller than most crops."""
    images = []
    for image in sample_images(3)[:6]:
        images += [image, image.rotate(90, expand=True), image.crop((0, 0, 201, 301))]
    images += [images[0].crop((0, 0, 97, 60)), images[0].crop((0, 0, 60, 97))]
    return images


@pytest.mark.parametrize(
    "config",
    [
        {"input_size": [3, 224, 224], "crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic"},
        {"input_size": [3, 224, 224], "crop_pct": 0.95, "interpolation": "bilinear"},
        {"input_size": [3, 160, 192], "crop_pct": 0.9, "crop_mode": "center", "interpolation": "bicubic"},
        {"input_size": [3, 160, 160], "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bicubic"},
        {"input_size": [3, 160, 192], "crop_pct": 0.9, "crop_mode": "squash", "interpolation": "bilinear"},
        {"input_size": [3, 160, 160], "crop_pct": 1.0, "crop_mode": "border", "interpolation": "bicubic"},
        {"input_size": [3, 160, 191], "crop_pct": 0.875, "crop_mode": "border", "interpolation": "lanczos"},
        {"input_size": [3, 224, 224], "interpolation": "nearest"},
        {"input_size": [3, 128, 128]},
    ],
    ids=lambda config: "-".join(str(value) for value in config.values()),
)
@pytest.mark.parametrize("nested", [True, False], ids=["config.json", "pretrained_cfg"])
def test_pixels_of_a_timm_configuration_equal_timms_to_the_bit(tmp_path, config, nested):
    timm_data = import_module("timm.data")
    config = config | {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
    content = {"architecture": "resnet18", "num_classes": 7, "pretrained_cfg": config} if nested else config
    preset = from_proto(preprocessing(written(tmp_path, content)), 3)
    resolved = timm_data.resolve_data_config(pretrained_cfg=config)
    plain = timm_data.create_transform(**resolved, normalize=False)
    whole = timm_data.create_transform(**resolved)

    for image in pictures():
        expected = plain(image).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(to_pixels(image, preset), expected)
        np.testing.assert_allclose(to_input(image, preset), whole(image), atol=2e-6)


HUB = {
    "vit": ("ViT", {"size": {"height": 224, "width": 224}, "resample": 2}),
    "vit not square": ("ViT", {"size": {"height": 160, "width": 200}, "image_mean": [0.4] * 3}),
    "vit of defaults": ("ViT", {}),
    "convnext below 384": ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.95}),
    "convnext with its default share": ("ConvNext", {"size": {"shortest_edge": 288}, "resample": 2}),
    "convnext of 384": ("ConvNext", {"size": {"shortest_edge": 384}}),
    "efficientnet": (
        "EfficientNet",
        {
            "size": {"height": 224, "width": 224},
            "resample": 0,
            "image_mean": IMAGENET["mean"],
            "image_std": [0.47853944, 0.4732864, 0.47434163],
        },
    ),
    "efficientnet once": ("EfficientNet", {"include_top": False, "image_std": [0.5, 0.4, 0.3]}),
    "efficientnet around 0": ("EfficientNet", {"rescale_factor": 1 / 127.5, "rescale_offset": True}),
    "mobilenet": ("MobileNetV2", {"image_mean": [0.5] * 3}),
    "mobilenet v1": ("MobileNetV1", {"size": {"shortest_edge": 257}, "crop_size": 193}),
    "clip": ("CLIP", {}),
    "clip smaller than its crop": ("CLIP", {"size": {"shortest_edge": 150}}),
    "clip not resized": ("CLIP", {"do_resize": False, "crop_size": {"height": 100, "width": 130}}),
    "clip not normalised": ("CLIP", {"do_normalize": False}),
    "deit": ("DeiT", {"size": {"height": 256, "width": 250}, "crop_size": {"height": 224, "width": 223}}),
    "bytes": ("ViT", {"do_rescale": False, "image_mean": [123.7, 116.3, 103.5], "image_std": [58.4] * 3}),
    "levit": ("Levit", {}),
    "poolformer": ("PoolFormer", {"crop_pct": 0.95}),
    "mobilevit": ("MobileViT", {"size": {"shortest_edge": 288}}),
    "siglip": ("Siglip", {}),
    "bit": ("Bit", {"size": {"shortest_edge": 256}}),
    "beit": ("Beit", {}),
    "pvt": ("Pvt", {}),
}
MODULES = {"mobilenetv1": "mobilenet_v1", "mobilenetv2": "mobilenet_v2"}


@pytest.mark.parametrize("kind", HUB)
def test_what_a_hub_processor_makes_equals_transformers(tmp_path, kind):
    name, content = HUB[kind]
    module = MODULES.get(name.lower(), name.lower())
    processors = import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    processor = getattr(processors, f"{name}ImageProcessorPil")(**content)
    content = {"image_processor_type": f"{name}ImageProcessor"} | content
    record = preprocessing(written(tmp_path, content, "preprocessor_config.json"))

    for image in pictures():
        expected = processor(image, return_tensors="np")["pixel_values"][0]
        found = to_input(image, from_proto(record, 3))
        # What is more than rounding is another pixel: the smallest step is 1 / 255 / std.
        largest = max(float(np.abs(expected).max()), 1.0)
        np.testing.assert_allclose(found, expected, atol=largest * 1e-6, rtol=0)


def test_a_size_of_one_number_is_what_the_old_feature_extractors_took_it_for(tmp_path):
    old = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_resize": True}
    vit = preprocessing(
        written(tmp_path, old | {"feature_extractor_type": "ViTFeatureExtractor", "size": 192})
    )
    clip = preprocessing(
        written(tmp_path, old | {"feature_extractor_type": "CLIPFeatureExtractor", "size": 250})
    )

    assert (vit.resize_mode, vit.crop_height, vit.interpolation) == (Preprocessing.STRETCH, 192, "bilinear")
    assert (clip.resize_mode, clip.resize_size, clip.crop_height) == (Preprocessing.SHORTEST_EDGE, 250, 224)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"image_processor_type": "DonutImageProcessor"}, "DonutImageProcessor is not among"),
        ({"image_processor_type": "ViTImageProcessor", "do_resize": False}, "neither resizes"),
        ({"image_processor_type": "CLIPImageProcessor", "do_center_crop": False}, "does not crop"),
        ({"image_processor_type": "ViTImageProcessor", "do_pad": True}, "do_pad"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 9}}, "size must be"),
        ({"image_processor_type": "ViTImageProcessor", "resample": 9}, "resample must be"),
        (
            {"do_resize": True, "size": {"height": 9, "width": 9}},
            "not known: resample, image_mean, image_std",
        ),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": [123, 117, 104]}, "value_range = 255"),
        ({"image_processor_type": "ViTImageProcessor", "do_rescale": False}, "do_rescale"),
        ({"architectures": ["ViT"], "id2label": {"0": "a"}}, "preprocessor_config.json"),
        ({"input_size": [3, 224, 224], "crop_mode": "middle"}, "crop_mode"),
        ({"input_size": [224, 224]}, "input_size"),
        ({"input_size": [3, 224, 224], "interpolation": "random"}, "interpolation"),
        ({"input_size": [3, 224, 224], "mean": [123.7, 116.3, 103.5]}, "0 to 1"),
    ],
)
def test_a_foreign_description_that_cannot_be_served_is_refused(tmp_path, content, complaint):
    with pytest.raises(PresetError, match=complaint):
        preprocessing(written(tmp_path, content))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"std": [58.4, 57.1, 57.4]}, "value_range = 255"),
        ({"std": [255, 255, 255], "mean": [0, 0, 0]}, "value_range = 255"),
        ({"mean": [123.675, 116.28, 103.53]}, "value_range = 255"),
        ({"value_range": 255}, "value_range = 1"),
        ({"value_range": 255, "mean": [0, 0, 0]}, "value_range = 1"),
        ({"value_range": 255, "mean": [300, 0, 0], "std": [1, 1, 1]}, "0 to 255"),
        ({"value_range": 2}, "value_range must be 1 or 255"),
        ({"channel_order": "GBR"}, "channel_order must be RGB or BGR"),
        ({"resize_height": 9}, "go with STRETCH, COVER and FIT"),
        ({"resize_mode": "FIT", "resize_size": 0}, "need resize_height and resize_width"),
        ({"resize_mode": "STRETCH", "resize_size": 0, "resize_width": 9}, "go together"),
        ({"pad_color": [1, 2]}, "pad_color"),
        ({"background": [1, 2]}, "background must be 3 numbers"),
        ({"background": [256]}, "background must be 3 numbers"),
        ({"mean": [0.5]}, "3 values each"),
    ],
)
def test_numbers_on_the_wrong_scale_and_fields_at_odds_are_refused(tmp_path, changes, complaint):
    with pytest.raises(PresetError, match=complaint):
        preprocessing(written(tmp_path, TOLD | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"value_range": 255, "mean": [104, 117, 123], "std": [1, 1, 1], "channel_order": "bgr"},
        {"value_range": 255, "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]},
        {"value_range": 255, "mean": [0, 0, 0], "std": [255, 255, 255]},
        {"value_range": 255, "mean": [0, 0, 0], "std": [1, 1, 1]},
        {"value_range": 1, "mean": [0, 0, 0], "std": [1, 1, 1]},
        {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "channel_order": "RGB"},
    ],
)
def test_each_scale_and_order_gives_the_numbers_that_were_meant(tmp_path, changes):
    record = preprocessing(written(tmp_path, TOLD | changes))
    image = sample_images(3)[0]
    pixels = to_pixels(image, from_proto(record, 3)).astype(np.float64)
    if changes.get("channel_order") == "bgr":
        pixels = pixels[:, :, ::-1]
    values = pixels if changes.get("value_range") == 255 else pixels / 255
    expected = (values - changes["mean"]) / changes["std"]

    found = to_input(image, from_proto(record, 3)).permute(1, 2, 0)
    np.testing.assert_allclose(found, expected, atol=np.abs(expected).max() * 1e-6)


def test_the_name_of_torchvisions_weights_gives_their_transforms():
    record = preprocessing("ResNet50_Weights.IMAGENET1K_V2")

    assert (record.resize_size, record.crop_height) == (232, 224)
    with pytest.raises(PresetError, match="torchvision has no weights"):
        preprocessing("ResNet50_Weights.V9")


def test_a_graph_that_takes_bytes_is_told_only_the_pixels(tmp_path):
    record = preprocessing(written(tmp_path, {"input_size": [3, 64, 64]}), dtype="UINT8")

    assert not record.mean
    assert "graph normalises" in sentence(record, normalises="the graph normalises")


@pytest.mark.parametrize("name", ["told.toml", "told.json"])
def test_a_network_of_ones_own_takes_what_the_file_says(tmp_path, name):
    toml = 'resize_mode = "shortest_edge"\nresize_size = 40\ncrop_height = 48\ncrop_width = 32\n'
    toml += f'interpolation = "bicubic"\nmean = {IMAGENET["mean"]}\nstd = {IMAGENET["std"]}\n'
    told = TOLD | {"resize_size": 40, "interpolation": "bicubic", "crop_height": 48, "crop_width": 32}
    choice = written(tmp_path, toml if name.endswith("toml") else told, name)
    recipe = with_preprocess(zoo.resolve("resnet18", "untrained"), choice)

    assert recipe.transforms(Image.new("RGB", (99, 50))).shape == (3, 48, 32)
    assert torch.equal(recipe.transforms(sample_images(3)[0]), to_input(sample_images(3)[0], recipe.preset))
    assert recipe.preset_from == name
