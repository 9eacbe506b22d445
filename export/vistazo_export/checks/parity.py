"""Torch against ONNX Runtime, and ONNX Runtime against itself, on real images.

torch gets the output of the network's original transforms; the graph gets the uint8 pixels that the
manifest's preprocessing makes. So one figure covers the weights, the operators, the normalisation in
the graph and the preprocessing on record.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from PIL import Image

from vistazo_export.checks.sample_images import sample_images
from vistazo_export.errors import GraphError, ParityError
from vistazo_export.networks.zoo import LoadedNetwork
from vistazo_export.presets.preset import Preset, to_pixels
from vistazo_proto.manifest_pb2 import Parity

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
Element = TypeVar("Element", bound=np.generic)


@dataclass(frozen=True)
class Bounds:
    """What a graph must meet; logit differences are divided by the largest absolute logit."""

    tolerance: float
    """On the difference of any logit from torch's; 0: none."""
    spread: float
    """On the difference that company in a batch makes."""
    noise: float = 0
    """On the noise that rounding adds to the logits, as `_noise` measures it; 0: none."""
    agreement: float = 0
    """Least share of images with torch's top class, where the weights are trained; 0: none."""


BOUNDS = {
    # fp32 sums in another order.
    "fp32": Bounds(tolerance=1e-4, spread=1e-4),
    # float16 has 11 bits, 5e-4 relative, and rounds after every layer.
    "fp16": Bounds(tolerance=1e-2, spread=1e-2),
    # A sound network measures 2 to 10 % noise, a broken one beyond 100. The photographs are few and some
    # show no object, so that close top classes may swap in a few. Where part of the graph stays float32,
    # its last bit may tip a value over to the next of 256 steps in one batch and not in another.
    "int8": Bounds(tolerance=0, spread=5e-2, noise=0.5, agreement=0.75),
}
"""By precision, as the manifest names it."""

MOST_BATCH_SIZE = 1024
"""Largest batch that an export may ask for and a manifest may promise."""

# Images that torch runs at a time, so that a big network needs no more memory than one small batch.
TORCH_BATCH = 4


@dataclass(frozen=True)
class OnnxLogits:
    """The graph's answers to the sample images, at several batch sizes."""

    alone: Logits
    """images × classes: each image as a batch of its own."""
    batched: dict[int, Logits]
    """Batch size → batch × classes; row i is sample image i, counted round and round."""

    def largest_spread(self) -> float:
        """Return the largest difference that company in a batch makes, relative to the largest logit."""
        largest = max((_largest(rows - self._expected(rows)) for rows in self.batched.values()), default=0.0)
        return _relative(largest, self.alone)

    def largest_difference(self, reference: Logits) -> float:
        """Return the largest absolute difference of any logit from `reference`, images × classes."""
        answers = [self.alone, *self.batched.values()]
        return max(_largest(rows - _repeated(reference, len(rows))) for rows in answers)

    def top1_agreement(self, reference: Logits) -> float:
        """Return the share of images, 0 to 1, whose top class is that of `reference` in every batch."""
        agreed = self.alone.argmax(axis=1) == reference.argmax(axis=1)
        for rows in self.batched.values():
            same = rows.argmax(axis=1) == _repeated(reference, len(rows)).argmax(axis=1)
            np.logical_and.at(agreed, np.arange(len(rows)) % len(agreed), same)
        return float(agreed.mean())

    def _expected(self, rows: Logits) -> Logits:
        return _repeated(self.alone, len(rows))


def batch_sizes_up_to(max_batch_size: int) -> list[int]:
    """Return the batch sizes that are checked: 1, 2, 3 and the largest."""
    return sorted({size for size in (1, 2, 3) if size <= max_batch_size} | {max_batch_size})


def open_session(model: Path, precision: str) -> onnxruntime.InferenceSession:
    """Return a CPU session on `model`, or raise GraphError where ONNX Runtime refuses the file."""
    options = onnxruntime.SessionOptions()
    # ONNX Runtime would count the host's processors, not those this process may use.
    options.intra_op_num_threads = torch.get_num_threads()
    # Whatever fails is raised; lines of its own would stand beside the command's.
    options.log_severity_level = 4
    # It ends the process at vit_b_16 in fp16 (ONNX Runtime 1.32). CUDA, which fp16 is for, does without.
    skipped = ["NchwcTransformer"] if precision == "fp16" else None
    try:
        return onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], disabled_optimizers=skipped
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise GraphError(f"ONNX Runtime cannot load {model.name}: {reason}") from error


def run_onnx(
    session: onnxruntime.InferenceSession, pixels: Pixels, batch_sizes: list[int], most_spread: float
) -> OnnxLogits:
    """Return the graph's logits for `pixels` (images × H × W × C), each alone and in batches.

    Raises GraphError where it cannot run, and ParityError where a logit is not finite or depends by more
    than `most_spread` on the company in the batch.
    """
    tensor = session.get_inputs()[0].name
    try:
        alone = np.concatenate([session.run(None, {tensor: image[np.newaxis]})[0] for image in pixels])
        batched = {
            size: session.run(None, {tensor: _repeated(pixels, size)})[0] for size in batch_sizes if size > 1
        }
    except Exception as error:
        raise GraphError(
            f"ONNX Runtime cannot run the graph: {' '.join(str(error).split())[:200]}"
        ) from error
    answers = OnnxLogits(alone, batched)
    for rows in (alone, *batched.values()):
        if not np.isfinite(rows).all():
            raise ParityError("some logits are not finite numbers")
    spread = answers.largest_spread()
    if not spread <= most_spread:
        raise ParityError(
            f"an image's logits depend on its batch: {spread:.1e} relative, more than {most_spread:.0e}"
        )
    return answers


def run_torch(network: LoadedNetwork, images: list[Image.Image]) -> Logits:
    """Return torch's logits, images × classes, after the network's own transforms."""
    transforms = network.recipe.transforms
    mode = "L" if network.recipe.preset.channels == 1 else "RGB"
    rows = []
    with torch.inference_mode():
        for start in range(0, len(images), TORCH_BATCH):
            chunk = images[start : start + TORCH_BATCH]
            batch = torch.stack([transforms(image.convert(mode)) for image in chunk])
            rows.append(network.module(batch).numpy())
    return np.concatenate(rows)


def sample_pixels(preset: Preset) -> Pixels:
    """Return the sample images as the graph takes them: images × H × W × C."""
    return np.stack([to_pixels(image, preset) for image in sample_images(preset.channels)])


def measure_parity(model: Path, network: LoadedNetwork, max_batch_size: int, precision: str) -> Parity:
    """Compare model.onnx with the torch network and return the figures for the manifest.

    Raises ParityError where they differ by more than the BOUNDS of `precision`, or a logit is not finite.
    """
    bounds = BOUNDS[precision]
    preset = network.recipe.preset
    batch_sizes = batch_sizes_up_to(max_batch_size)
    answers = run_onnx(open_session(model, precision), sample_pixels(preset), batch_sizes, bounds.spread)
    reference = run_torch(network, sample_images(preset.channels))
    if reference.shape != answers.alone.shape:
        raise ParityError(f"torch gives {reference.shape[1]} classes, ONNX Runtime {answers.alone.shape[1]}")
    largest = answers.largest_difference(reference)
    relative = _relative(largest, reference)
    # Not "greater than": a NaN must fail too.
    if bounds.tolerance and not relative <= bounds.tolerance:
        raise ParityError(
            f"ONNX Runtime and torch differ by {largest:.1e} ({relative:.1e} relative, "
            f"more than {bounds.tolerance:.0e})"
        )
    noise, agreement = _noise(answers.alone, reference), answers.top1_agreement(reference)
    if bounds.noise and not noise <= bounds.noise:
        raise ParityError(
            f"{precision} broke the model: its rounding adds {noise:.0%} noise to the logits, "
            f"more than {bounds.noise:.0%}"
        )
    # Untrained logits are all but equal, and which is the largest says nothing.
    if network.recipe.weights.source != "untrained" and agreement < bounds.agreement:
        raise ParityError(
            f"{precision} broke the model: torch's top class for only {agreement:.0%} of "
            f"{len(reference)} images, fewer than {bounds.agreement:.0%}"
        )
    return Parity(
        batch_sizes=batch_sizes,
        images=len(reference),
        max_abs_logit_diff=largest,
        max_rel_logit_diff=relative,
        top1_agreement=agreement,
        tolerance=bounds.tolerance,
    )


def _noise(logits: Logits, reference: Logits) -> float:
    """Return the size of the difference relative to that of `reference`, each less its image's mean.

    0 is perfect, 1 as bad as answering the same for every class. What all logits of an image have in
    common does not count: softmax takes it out.
    """
    signal = reference - reference.mean(axis=1, keepdims=True)
    error = logits - reference
    error = error - error.mean(axis=1, keepdims=True)
    size = float(np.linalg.norm(signal))
    return float(np.linalg.norm(error)) / size if size > 0 else float(np.linalg.norm(error))


def _repeated(rows: npt.NDArray[Element], count: int) -> npt.NDArray[Element]:
    """Return `count` rows, starting again from the first after the last."""
    return rows[np.arange(count) % len(rows)]


def _largest(differences: Logits) -> float:
    return float(np.abs(differences).max())


def _relative(difference: float, reference: Logits) -> float:
    """Return `difference` divided by the largest absolute value in `reference`."""
    largest = _largest(reference)
    return difference / largest if largest > 0 else difference
