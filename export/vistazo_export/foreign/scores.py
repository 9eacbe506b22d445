"""The output of an imported graph that scores the classes: which it is, how many, and what the scores are."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vistazo_export.errors import LabelsError, ParityError, UndecidedError
from vistazo_export.foreign.interface import FLOATS, OnnxInterface, TensorInfo
from vistazo_proto.manifest_pb2 import Output

Array = npt.NDArray[Any]

# Of a row of probabilities, in float16 at worst.
SUM_TOLERANCE = 1e-2

# What these give is not held to any range, so it is logits though a few samples may look otherwise.
UNBOUNDED = {
    "Add",
    "AveragePool",
    "Conv",
    "DequantizeLinear",
    "Gemm",
    "GlobalAveragePool",
    "LogSoftmax",
    "MatMul",
    "Mul",
    "QLinearAdd",
    "ReduceMean",
    "Sub",
}


def scores_output(
    interface: OnnxInterface, answers: Mapping[str, Array], *, wanted: str, labels: int, kind: str
) -> Output:
    """Return the manifest's record of the output that scores the classes.

    `answers` are the outputs' rows on real input, `wanted` and `kind` what the user says, `labels` how many
    there are, 0 for none given. Raises UndecidedError where that leaves a choice.
    """
    tensor = _choose(interface, answers, wanted, labels)
    scores = class_scores(answers[tensor.name])
    if not np.isfinite(scores).all():
        raise ParityError(f"some values of the output {tensor.name} are not finite numbers")
    classes = scores.shape[1]
    if labels not in {0, classes}:
        raise LabelsError(f"there are {labels} labels, but the output {tensor} scores {classes} classes")
    return Output(
        tensor=tensor.name,
        kind=_kind(scores, tensor, interface.last_operators[tensor.name], kind),
        classes=classes,
    )


def class_scores(rows: Array) -> npt.NDArray[np.float32]:
    """Return an output's rows, N × classes with or without dimensions of 1, as N × classes."""
    return rows.reshape(len(rows), -1).astype(np.float32)


def _choose(interface: OnnxInterface, answers: Mapping[str, Array], wanted: str, labels: int) -> TensorInfo:
    """Return the output with a floating-point row of two or more numbers for each sample."""
    possible = [
        tensor
        for tensor in interface.outputs
        if tensor.dtype in FLOATS and tensor.name in answers and _is_row(answers[tensor.name].shape[1:])
    ]
    listed = ", ".join(map(str, interface.outputs))
    if wanted:
        named = [tensor for tensor in possible if tensor.name == wanted]
        if named:
            return named[0]
        if wanted in {tensor.name for tensor in interface.outputs}:
            raise UndecidedError(f"the output {wanted} is no row of class scores for each sample: {listed}")
        raise UndecidedError(f"the graph has no output {wanted!r}; it has {listed}")
    if not possible:
        raise UndecidedError(
            f"no output is a row of class scores for each sample: {listed}; "
            "--preprocess none without --labels serves it over Open Inference only"
        )
    if len(possible) > 1 and labels:
        fitting = [t for t in possible if class_scores(answers[t.name]).shape[1] == labels]
        possible = fitting or possible
    if len(possible) > 1:
        raise UndecidedError(f"which output scores the classes is not clear: say --output NAME of {listed}")
    return possible[0]


def _is_row(shape: tuple[int, ...]) -> bool:
    """Say whether a sample's answer is two or more classes, among whatever dimensions of 1."""
    return sum(size != 1 for size in shape) == 1 and 0 not in shape


def _kind(scores: npt.NDArray[np.float32], tensor: TensorInfo, operator: str, said: str) -> "Output.Kind":
    """Return whether scores are logits or probabilities, as the user says or as they look."""
    sums_to_one = bool((scores >= 0).all() and (np.abs(scores.sum(axis=1) - 1) <= SUM_TOLERANCE).all())
    if said == "probabilities":
        if not sums_to_one:
            raise UndecidedError(
                f"the output {tensor} is no probabilities: its rows sum to "
                f"{scores.sum(axis=1).min():.3g} to {scores.sum(axis=1).max():.3g}"
            )
        return Output.PROBABILITIES
    if said == "logits":
        return Output.LOGITS
    if sums_to_one:
        return Output.PROBABILITIES
    bounded = bool(((scores >= 0) & (scores <= 1)).all())
    if operator in UNBOUNDED or not bounded:
        return Output.LOGITS
    raise UndecidedError(
        f"whether the output {tensor} is logits is not clear: it ends in {operator or 'no operator'}, is "
        "between 0 and 1 and does not sum to 1; say --output-kind logits or probabilities"
    )
