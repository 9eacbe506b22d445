"""LeNet-5 and its embedded weights: the one network that needs no download.

After LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition",
Proceedings of the IEEE, 1998. The layer sizes are the paper's; the activations are today's: ReLU and
max pooling for the sigmoids and trainable subsampling, a plain linear layer for the RBF output.
"""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vistazo_export.presets.preset import Preset
from vistazo_preprocessing.spec import ResizeMode

INPUT_SIZE = 32

LABELS = tuple("0123456789")

# Mean and deviation of the training digits once resized to 32 × 32, rounded.
PRESET = Preset(
    height=INPUT_SIZE,
    width=INPUT_SIZE,
    channels=1,
    # Stretched, not cropped: a tall digit cut out by its outline would lose its head and feet.
    resize_mode=ResizeMode.STRETCH,
    resize_size=0,
    interpolation=Image.Resampling.BILINEAR,
    mean=(0.305,),
    std=(0.323,),
)

WEIGHTS_NAME = "LeNet_Weights.DIGITS"
WEIGHTS_FILE = Path(__file__).parent / "weights" / "lenet-digits.safetensors"
WEIGHTS_SHA256 = "52ee8f6ff3d4410ea8f45ca21e7b165565ac5bd6ba9ba616a0bfa7d5bf35b35f"
"""Digest of the file that `train_lenet` made; a changed file is refused."""


class LeNet(nn.Module):
    """LeNet-5: float N×1×32×32 in, logits N×`num_classes` out."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 120, kernel_size=5),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, N×`num_classes`, for normalised images, N×1×32×32."""
        return cast("Tensor", self.classifier(self.features(images)))


def transforms(image: Image.Image) -> Tensor:
    """Return `image` as LeNet takes it: float 1×32×32, resized with Pillow and normalised."""
    resized = image.convert("L").resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BILINEAR)
    values = torch.from_numpy(np.asarray(resized).copy()).unsqueeze(0).to(torch.float32) / 255
    return (values - PRESET.mean[0]) / PRESET.std[0]
