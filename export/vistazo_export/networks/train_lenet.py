"""Train LeNet on real handwritten digits and write its embedded weights.

    python -m vistazo_export.networks.train_lenet [--output FILE]

About twenty seconds on two cores. The seed is fixed, but sums may round differently on another machine: a
new file means a new digest, which belongs in `lenet.WEIGHTS_SHA256` and is printed at the end.
"""

from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from vistazo_export.networks import digits, lenet
from vistazo_export.networks.download import sha256_of

SEED = 0
EPOCHS = 40
BATCH_SIZE = 64
PEAK_LEARNING_RATE = 4e-3

MAX_SHIFT = 3
"""Largest random shift in training, in pixels of 32."""

REQUIRED_ACCURACY = 0.97


def as_tensor(images: npt.NDArray[np.uint8]) -> Tensor:
    """Return N digits of 8 × 8 as LeNet takes them: float N×1×32×32."""
    return torch.stack([lenet.transforms(Image.fromarray(image)) for image in images])


def accuracy(network: nn.Module, data: digits.Digits) -> float:
    """Return the share, 0 to 1, of `data` that `network` reads rightly."""
    network.eval()
    with torch.inference_mode():
        answers = network(as_tensor(data.images)).argmax(dim=1).numpy()
    return float((answers == data.labels).mean())


def _shifted(images: Tensor) -> Tensor:
    """Return the batch with each image moved a few pixels at random, filled with paper."""
    # (0 - mean) / std: what an empty pixel becomes.
    paper = -lenet.PRESET.mean[0] / lenet.PRESET.std[0]
    size = images.shape[-1]
    padded = nn.functional.pad(images, [MAX_SHIFT] * 4, value=paper)
    moves = torch.randint(0, 2 * MAX_SHIFT + 1, (len(images), 2)).tolist()
    return torch.stack(
        [image[:, y : y + size, x : x + size] for image, (y, x) in zip(padded, moves, strict=True)]
    )


def train() -> lenet.LeNet:
    """Return a LeNet trained on `digits.training()`, the same on each run."""
    torch.manual_seed(SEED)
    data = digits.training()
    images, labels = as_tensor(data.images), torch.from_numpy(data.labels)
    network = lenet.LeNet()
    steps = -(-len(images) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=PEAK_LEARNING_RATE, epochs=EPOCHS, steps_per_epoch=steps
    )
    for epoch in range(EPOCHS):
        network.train()
        total = 0.0
        for chosen in torch.chunk(torch.randperm(len(images)), steps):
            loss = nn.functional.cross_entropy(
                network(_shifted(images[chosen])), labels[chosen], label_smoothing=0.05
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        click.echo(f"epoch {epoch + 1:2d}/{EPOCHS}  loss {total / len(images):.4f}")
    return network


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=lenet.WEIGHTS_FILE,
    show_default=True,
    help="Where the weights go.",
)
def main(output: Path) -> None:
    """Train LeNet on real handwritten digits and write its weights."""
    network = train()
    reached = accuracy(network, digits.held_out())
    learned = accuracy(network, digits.training())
    click.echo(f"held-out accuracy {reached:.2%}, training accuracy {learned:.2%}")
    if reached < REQUIRED_ACCURACY:
        raise click.ClickException(f"below the required {REQUIRED_ACCURACY:.0%}; nothing was written")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(save(network.state_dict()))
    click.echo(f"wrote {output}\nsha256 {sha256_of(output)}")


if __name__ == "__main__":
    main()
