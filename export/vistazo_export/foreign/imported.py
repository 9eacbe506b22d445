"""Running an imported graph: it must answer, and the same in any company.

There is no torch module to compare with. What can be checked is checked: the files are those of the
import, the graph runs at the batch sizes that the manifest promises, and a sample's answer depends
neither on chance nor on its batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from vistazo_export.checks.batch_mates import mixed, try_batch_mates
from vistazo_export.checks.parity import BOUNDS, batch_sizes_up_to, open_session
from vistazo_export.checks.sample_images import sample_images
from vistazo_export.errors import GraphError, ParityError, RepositoryError, UndecidedError
from vistazo_export.foreign.interface import FLOATS, OnnxInterface, TensorInfo
from vistazo_export.foreign.scores import KINDS, ScoresOptions, scores_output
from vistazo_export.networks.download import sha256_of
from vistazo_export.presets.preset import input_spec, prepared
from vistazo_export.progress import SILENT, Progress
from vistazo_onnx.batch_mates import mixing_operator
from vistazo_proto.manifest_pb2 import ModelManifest, Output

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

SAMPLES = 4
"""Images, or random tensors, that a graph is run on."""

NUMPY_DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}


def image_feeds(manifest: ModelManifest) -> Feeds:
    """Return real images as the manifest's input takes them, SAMPLES of them."""
    spec = input_spec(manifest.input, manifest.preprocessing)
    images = sample_images(spec.channels)[:SAMPLES]
    return {manifest.input.tensor: np.stack([prepared(image, spec) for image in images])}


def random_feeds(interface: OnnxInterface) -> Feeds | None:
    """Return random tensors for every input; None where a size is left open.

    SAMPLES rows each, or one tensor of the whole shape where the graph has no batch dimension. Numbers that
    may be indexes are zeros. Raises UndecidedError for an input that cannot be fed.
    """
    random = np.random.default_rng(0)
    rows = (SAMPLES,) if is_batched(interface) else ()
    feeds = {}
    for tensor in interface.inputs:
        if tensor.dtype not in NUMPY_DTYPES:
            raise UndecidedError(f"the input {tensor} has a type that cannot be fed over Open Inference")
        sizes = None if tensor.shape is None else tensor.shape[len(rows) :]
        if sizes is None or None in sizes:
            return None
        shape = (*rows, *(size for size in sizes if size is not None))
        dtype = NUMPY_DTYPES[tensor.dtype]
        if tensor.dtype == "BYTES":
            feeds[tensor.name] = np.full(shape, "", dtype)
        elif tensor.dtype in FLOATS:
            feeds[tensor.name] = np.asarray(random.random(shape)).astype(dtype)
        elif tensor.dtype == "UINT8":
            feeds[tensor.name] = np.asarray(random.integers(0, 256, shape)).astype(dtype)
        else:
            feeds[tensor.name] = np.zeros(shape, dtype)
    return feeds


def is_batched(interface: OnnxInterface) -> bool:
    """Say whether a graph that takes no images has a batch dimension: the first, dynamic or 1, everywhere.

    Fixed at another number the first dimension may be anything.
    """
    return all(
        tensor.shape is None or (len(tensor.shape) > 0 and tensor.shape[0] in {None, 1})
        for tensor in (*interface.inputs, *interface.outputs)
    )


def batch_limit(inputs: Sequence[TensorInfo], most: int) -> int:
    """Return the largest batch to promise: `most`, or the size that an input fixes."""
    fixed = max((_fixed_batch(tensor) for tensor in inputs), default=0)
    return fixed or most


@dataclass(frozen=True)
class Ran:
    """What runs of an imported graph have shown."""

    answers: dict[str, Array]
    """The rows of each output, one for each sample."""
    one_by_one: str
    """Why samples must not share a batch; empty: they may, in those of the manifest's largest size."""


def run_graph(model: Path, interface: OnnxInterface, manifest: ModelManifest, feeds: Feeds) -> Ran:
    """Run the graph on each row of `feeds` alone, twice, and in batches as the manifest promises them.

    A graph without a batch dimension is run on all of `feeds`, twice. Raises GraphError where it cannot run,
    and ParityError where an answer depends on chance.
    """
    if manifest.precision not in BOUNDS:
        raise RepositoryError(f"precision {manifest.precision!r} cannot be verified by this Vistazo")
    most_spread = BOUNDS[manifest.precision].spread
    session = open_session(model, manifest.precision)
    if not manifest.HasField("input") and not is_batched(interface):
        answers = _run(session, feeds)
        _check_same(answers, _run(session, feeds), most_spread)
        return Ran(answers, "the graph has no batch dimension")
    fixed = max(_fixed_batch(tensor) for tensor in interface.inputs)
    count = len(next(iter(feeds.values())))
    each = [_run_rows(session, feeds, np.array([row]), fixed) for row in range(count)]
    _check_same(each[0], _run_rows(session, feeds, np.array([0]), fixed), most_spread)
    alone = _joined(each)
    if fixed == 1:
        return Ran(alone, "the graph takes batches of 1")
    reason = mixing_operator(model)
    if manifest.max_batch_size > 1:
        reason = reason or _company(session, feeds, alone, manifest.max_batch_size, fixed, most_spread)
        reason = reason or try_batch_mates(
            session,
            _servable(session),
            {name: rows[0, ...] for name, rows in feeds.items()},
            largest=manifest.max_batch_size,
            fixed=fixed,
        )
    return Ran(alone, reason)


def _company(
    session: onnxruntime.InferenceSession,
    feeds: Feeds,
    alone: Mapping[str, Array],
    largest: int,
    fixed: int,
    most_spread: float,
) -> str:
    """Return how the samples of `feeds` fare worse in batches than `alone`; empty: they do not."""
    count = len(next(iter(feeds.values())))
    for size in batch_sizes_up_to(largest):
        if size == 1:
            continue
        index = np.arange(size) % count
        try:
            answers = _run_rows(session, feeds, index, fixed)
        except GraphError as error:
            return str(error)
        for name, rows in answers.items():
            if rows.shape[:1] != (size,) or name not in alone:
                shape = "×".join(map(str, rows.shape))
                return f"the output {name} of a batch of {size} has shape {shape}, not a row for each sample"
            spread = _spread(alone[name][index], rows)
            if not spread <= most_spread:
                return (
                    f"a sample's {name} depends on its batch: {spread:.1e} relative, "
                    f"more than {most_spread:.0e}"
                )
    return ""


def check_external_files(folder: Path, manifest: ModelManifest) -> None:
    """Raise RepositoryError where a file of weights beside model.onnx is not that of the manifest."""
    for file in manifest.external_files:
        path = folder / file.path
        if not path.is_file():
            raise RepositoryError(f"{file.path}, which holds weights, is missing")
        if path.stat().st_size != file.bytes or sha256_of(path) != file.sha256:
            raise RepositoryError(f"{file.path} is not the file of weights that was imported")


def check_imported(
    model: Path, interface: OnnxInterface, manifest: ModelManifest, progress: Progress = SILENT
) -> None:
    """Check that the imported graph at `model` is and does what its manifest says.

    Scores that do not look like what it says are a warning, as its user may have said it.
    Raises GraphError, ParityError, RepositoryError or UndecidedError.
    """
    _check_input(interface, manifest)
    feeds = image_feeds(manifest) if manifest.HasField("input") else random_feeds(interface)
    if feeds is None:
        open_session(model, manifest.precision)
        ran = Ran({}, mixing_operator(model) if is_batched(interface) else "")
    else:
        ran = run_graph(model, interface, manifest, feeds)
    answers = ran.answers
    if ran.one_by_one and manifest.max_batch_size > 1:
        raise ParityError(mixed(manifest, ran.one_by_one))
    if feeds is None or not manifest.HasField("output"):
        return
    record = manifest.output
    kind = next((name for name, number in KINDS.items() if number == record.kind), "")
    if not kind:
        raise RepositoryError(f"the manifest's output.kind is {record.kind}, not one of {', '.join(KINDS)}")
    options = ScoresOptions(record.tensor, kind, tuple(manifest.labels))
    found = scores_output(interface, answers, options, Progress(warning=progress.warning))
    if found != record:
        raise RepositoryError(f"the manifest's output is {_in_words(record)}, the graph's {_in_words(found)}")


def _in_words(output: Output) -> str:
    binary = " by one score" if output.binary else ""
    return f"{output.classes} classes{binary} in {output.tensor}"


def _check_input(interface: OnnxInterface, manifest: ModelManifest) -> None:
    if not manifest.HasField("input"):
        return
    size = manifest.input
    order = {
        "NCHW": (size.channels, size.height, size.width),
        "NHWC": (size.height, size.width, size.channels),
    }
    wanted = TensorInfo(size.tensor, size.dtype, (None, *order.get(size.layout, ())))
    found = ", ".join(map(str, interface.inputs))
    fits = len(interface.inputs) == 1 and _fits(interface.inputs[0], wanted)
    if not fits:
        raise RepositoryError(f"the graph's input is {found}, the manifest says {wanted}")


def _fits(tensor: TensorInfo, wanted: TensorInfo) -> bool:
    """Say whether `tensor` can take what `wanted` describes, whatever the batch."""
    if (tensor.name, tensor.dtype) != (wanted.name, wanted.dtype):
        return False
    if tensor.shape is None or wanted.shape is None:
        return True
    return len(tensor.shape) == len(wanted.shape) and all(
        size in {None, right} for size, right in zip(tensor.shape[1:], wanted.shape[1:], strict=True)
    )


def _fixed_batch(tensor: TensorInfo) -> int:
    """Return the size of the first dimension; 0 where it is dynamic, or there is none."""
    return (tensor.shape[0] or 0) if tensor.shape else 0


def _run_rows(
    session: onnxruntime.InferenceSession, feeds: Feeds, index: npt.NDArray[np.intp], fixed: int
) -> dict[str, Array]:
    """Return the outputs for the rows `index` of the feeds as one batch.

    A `fixed` batch is filled up with the first row, as the server does, and the rest of the answer dropped.
    """
    missing = max(fixed - len(index), 0)
    filled = np.concatenate([index, np.repeat(index[:1], missing)])
    answers = _run(session, {name: rows[filled] for name, rows in feeds.items()}, batch=len(filled))
    if not missing:
        return answers
    return {name: rows[: len(index)] for name, rows in answers.items() if len(rows) == fixed}


def _run(session: onnxruntime.InferenceSession, feeds: Feeds, batch: int = 1) -> dict[str, Array]:
    """Return the outputs that are tensors; others, which are not served, are not asked for."""
    names = _servable(session)
    try:
        answers = session.run(names, dict(feeds))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise GraphError(f"ONNX Runtime cannot run the graph at batch {batch}: {reason}") from error
    return {
        name: rows
        for name, rows in zip(names, answers, strict=True)
        if isinstance(rows, np.ndarray) and rows.ndim > 0
    }


def _servable(session: onnxruntime.InferenceSession) -> list[str]:
    return [output.name for output in session.get_outputs() if _is_servable(output.type)]


def _is_servable(kind: str) -> bool:
    """Say whether an output of a type such as "tensor(float)" comes as a NumPy array."""
    return kind.startswith("tensor(") and kind != "tensor(bfloat16)"


def _check_same(first: Mapping[str, Array], second: Mapping[str, Array], most_spread: float) -> None:
    for name, rows in first.items():
        if not _spread(rows, second[name]) <= most_spread:
            raise ParityError(
                f"the output {name} differs from run to run on the same input: exported in training mode?"
            )


def _joined(answers: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Return the answers to batches of one as rows, leaving out outputs that differ in shape."""
    return {
        name: np.concatenate([answer[name] for answer in answers])
        for name, first in answers[0].items()
        if all(answer[name].shape == first.shape for answer in answers) and first.shape[0] == 1
    }


def _spread(expected: Array, found: Array) -> float:
    """Return the largest difference relative to the largest value; for other than numbers, 0 or 1."""
    if expected.shape != found.shape:
        return float("inf")
    if expected.dtype.kind != "f":
        return float(not np.array_equal(expected, found))
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    if np.array_equal(expected, found, equal_nan=True):
        return 0.0
    largest = float(np.abs(expected).max(initial=0))
    return float(np.abs(expected - found).max(initial=0)) / (largest or 1.0)
