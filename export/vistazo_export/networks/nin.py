"""Network in Network, the ImageNet version.

After Lin, Chen and Yan, "Network In Network", arXiv:1312.4400, 2013, with the layers of the authors'
ImageNet model in the Caffe model zoo. Its weights were published for Caffe only, in another channel
order and preprocessing, so for torch there are none; this one takes torchvision's ImageNet preset.
"""

from typing import cast

from torch import Tensor, nn


def _block(inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0) -> list[nn.Module]:
    """Return an "mlpconv": a convolution, then two 1×1 ones, each followed by ReLU."""
    return [
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, kernel_size=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, kernel_size=1),
        nn.ReLU(inplace=True),
    ]


class NetworkInNetwork(nn.Module):
    """Network in Network: float N×3×224×224 in, logits N×`num_classes` out."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        # Caffe rounds pooled sizes up: 54 → 27 → 13 → 6.
        self.features = nn.Sequential(
            *_block(3, 96, 11, stride=4),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            *_block(96, 256, 5, padding=2),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            *_block(256, 384, 3, padding=1),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            nn.Dropout(),
            nn.Conv2d(384, 1024, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(1024, 1024, kernel_size=1),
            nn.ReLU(inplace=True),
        )
        # No fully connected layer: one feature map per class, averaged.
        self.classifier = nn.Sequential(
            nn.Conv2d(1024, num_classes, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(cast("Tensor", module.bias))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, N×`num_classes`, for normalised images, N×3×224×224."""
        return cast("Tensor", self.classifier(self.features(images)))
