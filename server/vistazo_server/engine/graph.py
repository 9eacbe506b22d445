"""What a graph takes and gives, read from its ONNX Runtime session, and what its samples and rows are."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import structlog

from vistazo_server.engine.outputs import Row
from vistazo_server.engine.tensors import BYTES, DTYPES, FREE, Array, Signature, TensorSpec, datatype_of
from vistazo_server.errors import ModelLoadError

log = structlog.get_logger(__name__)

Sample = Array | tuple[Array, ...]
"""One sample: the array of a model's one input, or a tuple with one array for each of several."""

# What a free dimension may be at warm-up: most networks take 224, small ones for digits 28 to 32.
_GUESSES: Final = (224, 32, 1)
# With several free dimensions a guess is passed over for a smaller one.
_MOST_ELEMENTS: Final = 1 << 22


def read_signature(session: ort.InferenceSession, path: Path, *, image_input: str | None) -> Signature:
    """Return what the graph of a session takes and gives. Raises ModelLoadError for what cannot be served.

    Outputs that are no tensors, such as the maps of a ZipMap, are left aside, with a warning in the log.
    The first dimension counts samples where the graph leaves it free, or fixes it at 1, in all inputs and
    outputs alike. Free in all inputs, it is taken to be free though outputs say 1, as in graphs whose batch
    was made dynamic by hand: whoever takes the signature tries it. Fixed at another number it may be
    anything, so the graph is taken to have no batch dimension; but in a model whose manifest says that
    `image_input` takes images, it is a batch.
    """
    inputs = [(node.name, *_type_and_shape(node, path, "input")) for node in session.get_inputs()]
    given = session.get_outputs()
    aside = [f"{node.name} ({node.type})" for node in given if datatype_of(node.type) is None]
    if aside and len(aside) < len(given):
        log.warning("outputs_left_aside", path=str(path), outputs=aside, reason="only tensors can be served")
        given = [node for node in given if datatype_of(node.type) is not None]
    outputs = [(node.name, *_type_and_shape(node, path, "output")) for node in given]
    if not inputs or not outputs:
        raise ModelLoadError(f"{path} has {len(inputs)} inputs and {len(outputs)} outputs, expected some")
    is_image = image_input in [name for name, _, _ in inputs]
    # An output of unknown rank looks like a scalar here; what it really is, a run shows.
    shapes = [shape for _, _, shape in inputs] + [shape for _, _, shape in outputs if shape]
    batch = _batch(shapes, is_image=is_image)
    if batch == 1 and all(shape[0] == FREE for _, _, shape in inputs):
        batch = FREE
    skipped = 0 if batch is None else 1
    return Signature(
        tuple(TensorSpec(name, datatype, shape[skipped:]) for name, datatype, shape in inputs),
        tuple(TensorSpec(name, datatype, shape[skipped:]) for name, datatype, shape in outputs),
        is_batched=batch is not None,
        fixed_batch=0 if batch in (None, FREE) else batch,
    )


def _type_and_shape(node: Any, path: Path, kind: str) -> tuple[str, tuple[int, ...]]:  # noqa: ANN401  no types
    datatype = datatype_of(node.type)
    if datatype is None:
        raise ModelLoadError(
            f"{path}: the {kind} {node.name!r} is a {node.type}, which cannot be served; expected a tensor "
            f"of {', '.join(DTYPES)}"
        )
    # A name, or nothing at all, stands for a size that each run chooses.
    return datatype, tuple(size if isinstance(size, int) else FREE for size in node.shape)


def _batch(shapes: Sequence[tuple[int, ...]], *, is_image: bool) -> int | None:
    """Return the size of the batch dimension, -1 where it is free; None when there is no such dimension."""
    if any(not shape for shape in shapes):
        return None
    firsts = {shape[0] for shape in shapes}
    if firsts <= {FREE, 1} or (is_image and len(firsts - {FREE}) == 1):
        # Free in one and fixed in another: only the fixed size is sure to work.
        return max(firsts)
    return None


def with_sample_shape(signature: Signature, name: str, shape: tuple[int, ...]) -> Signature:
    """Return the signature with what is free of one input fixed, as far as the graph allows it."""
    return replace(
        signature,
        inputs=tuple(
            replace(spec, dims=shape) if spec.name == name and spec.fits(shape) else spec
            for spec in signature.inputs
        ),
    )


def without_batch(signature: Signature) -> Signature:
    """Return the signature with the first dimension taken as one of the sample's own."""
    return Signature(
        tuple(replace(spec, dims=signature.shape(spec)) for spec in signature.inputs),
        tuple(replace(spec, dims=signature.shape(spec)) for spec in signature.outputs),
        is_batched=False,
    )


def zeros(signature: Signature) -> list[Sample]:
    """Return samples to warm up with, the likeliest first: where sizes are free, several are worth a try."""
    if all(spec.is_fixed for spec in signature.inputs):
        return [_zeros(signature, 1)]
    return [
        _zeros(signature, guess)
        for guess in _GUESSES
        if all(math.prod(_guessed(spec, guess)) <= _MOST_ELEMENTS for spec in signature.inputs)
    ]


def _zeros(signature: Signature, guess: int) -> Sample:
    return _sample([_empty(spec, _guessed(spec, guess)) for spec in signature.inputs])


def _guessed(spec: TensorSpec, guess: int) -> list[int]:
    return [guess if size == FREE else size for size in spec.dims]


def _empty(spec: TensorSpec, shape: Sequence[int]) -> Array:
    if spec.datatype == BYTES:
        return np.full(shape, "", dtype=object)
    return np.zeros(shape, dtype=DTYPES[spec.datatype])


def _sample(arrays: Sequence[Array]) -> Sample:
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def arrays_of(sample: Sample) -> tuple[Array, ...]:
    """Return the arrays of a sample, one for each input."""
    return sample if isinstance(sample, tuple) else (sample,)


def split_samples(inputs: Sequence[Array], signature: Signature) -> list[Sample]:
    """Return the samples of a request's tensors, one for each input of the model; they share its memory."""
    if not signature.is_batched:
        return [_sample(inputs)]
    # With `...`, an element of a vector stays an array.
    return [_sample([array[at, ...] for array in inputs]) for at in range(len(inputs[0]))]


def join_rows(rows: Sequence[Row], index: int, signature: Signature) -> Array:
    """Return one output's tensor of a response, from the rows of a request.

    Raises ValueError when its rows differ in shape.
    """
    first, last = rows[0], rows[-1]
    if not signature.is_batched:
        return first.outputs.arrays[index]
    if all(row.outputs is first.outputs for row in rows) and last.at - first.at + 1 == len(rows):
        return first.outputs.arrays[index][first.at : last.at + 1]
    return np.stack([row.outputs.arrays[index][row.at, ...] for row in rows])
