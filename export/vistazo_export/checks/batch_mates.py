"""Whether samples may share a batch: by the graph's operators, and by trial with extreme mates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from vistazo_export.checks.parity import batch_sizes_up_to, open_session
from vistazo_export.errors import ParityError
from vistazo_onnx.batch_mates import mixing_operator
from vistazo_onnx.trial import influence
from vistazo_proto.manifest_pb2 import ModelManifest

Array = npt.NDArray[Any]

# What a trial may take beyond the few runs without which nothing is known. An import has only this to go by;
# of an export real images at all sizes have been compared already.
IMPORT_SECONDS = 5.0
EXPORT_SECONDS = 0.5


def try_batch_mates(
    session: onnxruntime.InferenceSession,
    outputs: Sequence[str],
    sample: Mapping[str, Array],
    *,
    largest: int,
    fixed: int = 0,
    seconds: float = IMPORT_SECONDS,
) -> str:
    """Return why samples must not share batches of up to `largest`, by trial; empty where they may.

    `sample` has one sample for each input, without the batch; `fixed` is the batch that the graph takes,
    where it takes no other.
    """
    names = list(sample)

    def run(columns: Sequence[Array]) -> Sequence[Array]:
        answers: Sequence[Array] = session.run(list(outputs), dict(zip(names, columns, strict=True)))
        return answers

    sizes = [fixed] if fixed else [size for size in batch_sizes_up_to(largest) if size > 1]
    return influence(run, list(sample.values()), sizes, seconds=seconds, alone=not fixed)


def check_batch_mates(model: Path, manifest: ModelManifest) -> None:
    """Raise ParityError where the graph of an export mixes the samples of the batches that are promised."""
    if manifest.max_batch_size == 1:
        return
    reason = mixing_operator(model)
    if not reason:
        size = manifest.input
        shape = (size.height, size.width, size.channels)
        reason = try_batch_mates(
            open_session(model, manifest.precision),
            [manifest.output.tensor],
            {size.tensor: np.zeros(shape, np.uint8)},
            largest=manifest.max_batch_size,
            seconds=EXPORT_SECONDS,
        )
    if reason:
        raise ParityError(mixed(manifest, reason))


def mixed(manifest: ModelManifest, reason: str) -> str:
    """Return the line that says that a manifest promises batches that mix samples."""
    return (
        f"batches of {manifest.max_batch_size} are promised, but samples must run one by one: {reason}; "
        "--max-batch 1 makes it so"
    )
