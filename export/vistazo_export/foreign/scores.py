"""The output of an imported graph that scores the classes: which it is, how many, and what the scores are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vistazo_export.errors import LabelsError, ParityError, UndecidedError
from vistazo_export.foreign.interface import FLOATS, OnnxInterface, TensorInfo
from vistazo_export.foreign.origin import Origin
from vistazo_export.progress import SILENT, Progress
from vistazo_proto.manifest_pb2 import Output

Array = npt.NDArray[Any]
Scores = npt.NDArray[np.float32]

KINDS = {
    "logits": Output.LOGITS,
    "probabilities": Output.PROBABILITIES,
    "independent": Output.INDEPENDENT,
    "independent-logits": Output.INDEPENDENT_LOGITS,
}
"""What --output-kind takes."""

CHOICES = "--output-kind logits, probabilities, independent or independent-logits"

# Of a row of probabilities, which may have been rounded to few bits.
SUM_TOLERANCE = 2.5e-2
# And where they come from a layer that holds them to no range, so that only exactness speaks for it.
UNBOUNDED_SUM_TOLERANCE = 1e-2
# Two sigmoids of an untrained network are a half each: only what sums to 1 by rule is a choice between both.
EXACT_SUM_TOLERANCE = 1e-4
# Of probabilities times a number, whose rows have one sum by rule.
SCALED_SUM_TOLERANCE = 1e-3
# Of probabilities that were rounded to few bits, how far they may leave 0 to 1.
RANGE_TOLERANCE = 2e-2
# The largest step of 8 bits, which int8 without a zero point makes of 0 to 1. Each probability is half of it
# off at worst, and with a thousand classes so are all of them.
LARGEST_STEP = 1 / 127


@dataclass(frozen=True)
class ScoresOptions:
    """What is said of the scores, where the graph does not; empty: nothing."""

    output: str = ""
    """The output that scores the classes."""
    kind: str = ""
    """One of KINDS."""
    labels: tuple[str, ...] = ()
    multi_label: bool = False
    """A folder of the hub says that an image may show any number of classes."""


def scores_output(
    interface: OnnxInterface,
    answers: Mapping[str, Array],
    options: ScoresOptions,
    progress: Progress = SILENT,
) -> Output:
    """Return the manifest's record of the output that scores the classes.

    `answers` are the outputs' rows on real input. What is decided where it could be meant otherwise is told
    to `progress`. Raises UndecidedError where what is known leaves a choice.
    """
    tensor = _choose(interface, answers, options)
    scores = class_scores(answers[tensor.name])
    if not np.isfinite(scores).all():
        raise ParityError(f"some values of the output {tensor.name} are not finite numbers")
    origin = interface.origins[tensor.name]
    if scores.shape[1] == 1:
        return _binary(scores, tensor, origin, options, progress)
    classes = scores.shape[1]
    if len(options.labels) not in {0, classes}:
        raise LabelsError(
            f"there are {len(options.labels)} labels, but the output {tensor} scores {classes} classes"
        )
    kind = score_kind(
        scores, str(tensor), origin, said=options.kind, multi_label=options.multi_label, progress=progress
    )
    return Output(tensor=tensor.name, kind=kind, classes=classes)


def class_scores(rows: Array) -> Scores:
    """Return an output's rows, N × classes with or without dimensions of 1, as N × classes."""
    return rows.reshape(len(rows), -1).astype(np.float32)


def score_kind(
    scores: Scores,
    tensor: str,
    origin: Origin,
    *,
    said: str,
    multi_label: bool = False,
    progress: Progress = SILENT,
) -> "Output.Kind":
    """Return what scores, N × classes, are: as the user says, or as their origin and their values show.

    `tensor` names the output in messages. Raises UndecidedError where neither decides, or both contradict.
    """
    if said:
        return _as_said(scores, tensor, origin, said, progress)
    if _sum_to_one(scores, origin) and not _are_sigmoids(scores, origin):
        if multi_label:
            raise UndecidedError(
                f"the rows of the output {tensor} sum to 1, so of classes that exclude each other, and "
                f"config.json says multi-label; say {CHOICES}"
            )
        return Output.PROBABILITIES
    if origin.operator == "Sigmoid":
        progress.note(
            f"the output {tensor} ends in Sigmoid: each class has a probability of its own (multi-label); "
            "--output-kind says otherwise"
        )
        return Output.INDEPENDENT
    if _are_scaled(scores, origin):
        raise UndecidedError(
            f"the output {tensor} seems to be probabilities on another scale, such as percentages: it is "
            f"{scores.min():.3g} to {scores.max():.3g}, and its rows sum to {_sums(scores)}; scale them "
            "to 0 to 1 in the graph, or say --output-kind logits to take a softmax of them all the same"
        )
    if origin.operator != "Softmax" and (origin.is_unbounded or not _in_range(scores, origin)):
        if not multi_label:
            return Output.LOGITS
        progress.note(
            f"the output {tensor} is taken before the sigmoid, since config.json says multi-label: each "
            "class has a probability of its own; --output-kind says otherwise"
        )
        return Output.INDEPENDENT_LOGITS
    raise UndecidedError(
        f"what the output {tensor} scores is not clear: it ends in "
        f"{origin.operator or 'no operator'}, is between 0 and 1, and its rows sum to {_sums(scores)}; say "
        f"{CHOICES}"
    )


def _choose(interface: OnnxInterface, answers: Mapping[str, Array], options: ScoresOptions) -> TensorInfo:
    """Return the output with a floating-point row for each sample, of two or more numbers if there is one."""
    possible = [
        tensor
        for tensor in interface.outputs
        if tensor.dtype in FLOATS and tensor.name in answers and _is_row(answers[tensor.name].shape[1:])
    ]
    counts = {tensor.name: class_scores(answers[tensor.name]).shape[1] for tensor in possible}
    listed = ", ".join(map(str, interface.outputs))
    wanted = options.output
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
    given = len(options.labels)
    # As many as there are labels; else the one that scores the second of two; else whatever is a choice.
    for sizes in ({given}, {1} if given == 2 else set(), {size for size in counts.values() if size > 1}):
        fitting = [tensor for tensor in possible if counts[tensor.name] in sizes]
        if fitting:
            possible = fitting
            break
    if len(possible) > 1:
        raise UndecidedError(f"which output scores the classes is not clear: say --output NAME of {listed}")
    return possible[0]


def _is_row(shape: tuple[int, ...]) -> bool:
    """Say whether a sample's answer is one number or several, among whatever dimensions of 1."""
    return sum(size != 1 for size in shape) <= 1 and 0 not in shape


def _binary(
    scores: Scores, tensor: TensorInfo, origin: Origin, options: ScoresOptions, progress: Progress
) -> Output:
    """Return the record of an output with one score a sample, that of the second of two labels."""
    ways = (
        "give two labels with --labels FILE, the second for what it scores, and say --output-kind "
        "independent where it is a probability or independent-logits where it is taken before the sigmoid; "
        "--preprocess none without --labels serves its tensors"
    )
    one_score = f"the output {tensor} is one score a sample, a binary classifier's"
    if len(options.labels) != 2:
        given = {0: "no label is given", 1: "one label is given"}.get(
            len(options.labels), f"{len(options.labels)} labels are given"
        )
        raise LabelsError(f"{one_score}, and {given}: {ways}")
    if origin.operator == "Softmax" and (scores == 1).all():
        raise UndecidedError(f"{one_score}, and ends in Softmax, which makes 1 of any single score")
    first, second = options.labels
    record = Output(tensor=tensor.name, classes=2, binary=True)
    if options.kind in {"independent", "independent-logits"}:
        record.kind = _as_said(scores, str(tensor), origin, options.kind, progress)
    elif options.kind:
        raise UndecidedError(f"{one_score}, and no row of {options.kind}: {ways}")
    elif origin.operator == "Sigmoid":
        record.kind = Output.INDEPENDENT
    else:
        ends = f", and ends in {origin.operator or 'no operator'}, not in Sigmoid"
        raise UndecidedError(f"{one_score}{ends}: {ways}")
    progress.note(
        f"the output {tensor} is one score a sample: the probability of {second!r}, the second label, and "
        f"{first!r} has 1 minus that"
        + ("" if options.kind else "; it ends in Sigmoid, --output-kind says otherwise")
    )
    return record


def _as_said(scores: Scores, tensor: str, origin: Origin, said: str, progress: Progress) -> "Output.Kind":
    """Return the kind that the user says, unless the scores cannot be of it."""
    if said == "probabilities" and not _sum_to_one(scores, origin):
        raise UndecidedError(
            f"the output {tensor} is no probabilities: its rows sum to {_sums(scores)}; where each is the "
            "probability of its own class, say --output-kind independent"
        )
    if said == "independent" and not _in_range(scores, origin):
        raise UndecidedError(
            f"the output {tensor} is no independent probabilities: its values are {scores.min():.3g} to "
            f"{scores.max():.3g}; where they are taken before the sigmoid, say --output-kind "
            "independent-logits"
        )
    if said == "independent" and origin.is_unbounded:
        progress.warning(
            f"the output {tensor} comes from a layer that holds it to no range: what lies outside is taken "
            "for 0 or 1; if it is taken before the sigmoid, say --output-kind independent-logits"
        )
    again = {"logits": "softmax", "independent-logits": "a sigmoid"}.get(said)
    if again and (origin.operator == "Sigmoid" or (scores.shape[1] > 1 and _sum_to_one(scores, origin))):
        progress.warning(
            f"the output {tensor} looks like probabilities already, and as {said} gets {again} on top; "
            "without --output-kind it would not"
        )
    return KINDS[said]


def _sum_to_one(scores: Scores, origin: Origin) -> bool:
    """Say whether the rows are probabilities that sum to 1, as exactly as their origin lets expect."""
    is_softmax = origin.operator == "Softmax"
    tolerance = UNBOUNDED_SUM_TOLERANCE if origin.is_unbounded else SUM_TOLERANCE
    if is_softmax and origin.is_quantized:
        tolerance += scores.shape[1] * LARGEST_STEP / 2
    least = -RANGE_TOLERANCE if origin.is_quantized else 0.0
    return bool((scores >= least).all() and (np.abs(scores.sum(axis=1) - 1) <= tolerance).all())


def _are_sigmoids(scores: Scores, origin: Origin) -> bool:
    """Say whether they are independent by their origin, though a few rows happen to sum to about 1."""
    exact = (np.abs(scores.sum(axis=1) - 1) <= EXACT_SUM_TOLERANCE).all()
    return origin.operator == "Sigmoid" and not bool(exact)


def _are_scaled(scores: Scores, origin: Origin) -> bool:
    """Say whether they are probabilities times a number: of a graph that squashes them, or by their sums."""
    if _in_range(scores, origin) or (scores < 0).any():
        return False
    sums = scores.sum(axis=1)
    same_sums = len(scores) > 1 and bool((np.abs(sums - sums[0]) <= SCALED_SUM_TOLERANCE * sums[0]).all())
    return origin.is_rescaled or (same_sums and not (scores == scores[0]).all())


def _in_range(scores: Scores, origin: Origin) -> bool:
    beyond = RANGE_TOLERANCE if origin.is_quantized else 0.0
    return bool(((scores >= -beyond) & (scores <= 1 + beyond)).all())


def _sums(scores: Scores) -> str:
    sums = scores.sum(axis=1)
    return f"{sums.min():.3g} to {sums.max():.3g}"
