"""What each operator does with the dimension that counts samples: keeps it, moves it, or mixes along it.

A rule returns where the samples are in what the node gives, or raises MixesError where it is sure that it
mixes them. What no rule knows leaves UNKNOWN, from which nothing follows: such graphs are tried.
"""

from collections.abc import Callable
from typing import Final

from vistazo_onnx.flow import UNKNOWN, Context, Flow, MixesError

_FURTHEST: Final = 1 << 31
"""Ends of slices from here on mean "to the end"."""


Rule = Callable[[Context], Flow]


def flow_of(context: Context) -> Flow:
    """Return where the samples are in what the node gives. Raises MixesError."""
    node = context.node
    if (reason := _WHOLE.get(node.operator)) and (not node.domain or node.operator in _MICROSOFT):
        raise MixesError(f"{node.operator} {reason}")
    if node.domain and node.operator not in _MICROSOFT:
        return UNKNOWN
    rule = _RULES.get(node.operator)
    return rule(context) if rule else UNKNOWN


def _place(axis: int, rank: int | None) -> int | None:
    """Return a dimension counted from the front."""
    if axis >= 0:
        return axis
    return None if rank is None else axis + rank


def _check_axis(context: Context, axis: int, flow: Flow) -> None:
    """Raise MixesError where `axis` is that of the samples."""
    if flow.axis is not None and _place(axis, flow.rank) == flow.axis:
        raise MixesError(f"{context.node.operator} over axis {axis} is over the batch")


def _same(context: Context) -> Flow:
    """Of operators that see each element, or each sample of a first dimension, for itself."""
    return context.flow(0) or UNKNOWN


def _per_sample(context: Context) -> Flow:
    """Of operators whose first dimension is one of samples by definition, such as Conv."""
    flow = context.flow(0)
    # Of another dimension, it depends on the kernel; of data in the weights, on everything.
    return flow if flow and flow.axis == 0 and not context.flow(1) else UNKNOWN


def _broadcast(context: Context) -> Flow:
    places, ranks = set(), []
    for index, name in enumerate(context.node.inputs):
        if not name:
            continue
        rank, flow = context.rank(index), context.flow(index)
        if rank is None or (flow and flow.axis is None):
            return UNKNOWN
        ranks.append(rank)
        if flow and flow.axis is not None:
            places.add(rank - flow.axis)
    if len(places) > 1:
        raise MixesError(f"{context.node.operator} meets each sample with the others of the batch")
    if not places:
        return UNKNOWN
    rank = max(ranks)
    return Flow(rank - places.pop(), rank)


def _over_axis(default: int, *, flattens_before: int = 0, drops: bool = False) -> Rule:
    """Return the rule of operators over one axis; before an opset, over all from that one on."""

    def rule(context: Context) -> Flow:
        flow = _same(context)
        early = context.opset < flattens_before
        axis = context.node.numbers.get("axis", 1 if early else default)
        if early:
            return _check_from(context, axis, flow)
        _check_axis(context, axis, flow)
        return _dropped(flow, (axis,)) if drops and not context.node.numbers.get("keepdims", 1) else flow

    return rule


def _check_from(context: Context, axis: int, flow: Flow) -> Flow:
    place = _place(axis, flow.rank)
    if flow.axis is not None and place is not None and flow.axis >= place:
        raise MixesError(f"{context.node.operator} from axis {axis} on is over the batch")
    return flow


def _dropped(flow: Flow, axes: tuple[int, ...]) -> Flow:
    """Return where the samples are once the dimensions `axes` are gone."""
    places = [_place(axis, flow.rank) for axis in axes]
    if flow.axis is None or None in places:
        return UNKNOWN
    before = sum(1 for place in places if place is not None and place < flow.axis)
    return Flow(flow.axis - before, None if flow.rank is None else flow.rank - len(axes))


def _reduce(context: Context) -> Flow:
    flow, axes = _same(context), context.list("axes", 1)
    if axes is None:
        return UNKNOWN
    if not axes:
        if context.node.numbers.get("noop_with_empty_axes"):
            return flow
        if context.each_alone:
            return UNKNOWN
        raise MixesError(f"{context.node.operator} over all axes is over the batch")
    for axis in axes:
        _check_axis(context, axis, flow)
    return flow if context.node.numbers.get("keepdims", 1) else _dropped(flow, axes)


def _mean_variance(context: Context) -> Flow:
    flow = _same(context)
    for axis in context.node.lists.get("axes", (0, 2, 3)):
        _check_axis(context, axis, flow)
    return flow


def _layer_norm(context: Context) -> Flow:
    return _check_from(context, context.node.numbers.get("axis", -1), _same(context))


def _instance_norm(context: Context) -> Flow:
    flow = _same(context)
    if flow.axis is not None and flow.axis > 1:
        raise MixesError(f"{context.node.operator} takes the statistics of the batch")
    return flow


def _batch_norm(context: Context) -> Flow:
    node, flow = context.node, _same(context)
    training = node.numbers.get("training_mode", 0)
    if context.opset < 7:
        training = not node.numbers.get("is_test", 0)
    if training or (7 <= context.opset < 14 and len(node.outputs) > 1):
        # Seen with ONNX Runtime 1.32, whose CPU kernel moves the graph's own mean and variance in each run.
        reason = "in training mode takes the statistics of the batch, and keeps them for later runs"
        raise MixesError(f"{node.operator} {reason}")
    return flow


def _along(index: int) -> Rule:
    """Return the rule of operators whose input `index` is their axis."""

    def rule(context: Context) -> Flow:
        flow, axis = _same(context), context.constant(index)
        if axis is None or len(axis) != 1:
            return UNKNOWN
        _check_axis(context, axis[0], flow)
        return flow

    return rule


def _gather(context: Context) -> Flow:
    flow, axis = context.flow(0), context.node.numbers.get("axis", 0)
    indices = context.flow(1)
    if flow is None:
        # Rows of a table, for each index.
        place = _place(axis, context.rank(0))
        if indices is None or indices.axis is None or place is None:
            return UNKNOWN
        return Flow(indices.axis + place)
    place = _place(axis, flow.rank)
    if indices or flow.axis is None or place is None:
        return UNKNOWN
    if place == flow.axis:
        if context.constant(1) is not None:
            raise MixesError("Gather takes fixed places of the batch")
        return UNKNOWN
    rank = context.rank(1)
    if place > flow.axis:
        return Flow(flow.axis, None if flow.rank is None or rank is None else flow.rank - 1 + rank)
    return UNKNOWN if rank is None else Flow(flow.axis - 1 + rank, None)


def _slice(context: Context) -> Flow:
    flow = _same(context)
    starts, ends = context.list("starts", 1), context.list("ends", 2)
    axes, steps = context.list("axes", 3), context.list("steps", 4)
    if flow.axis is None or starts is None or ends is None or axes is None or steps is None:
        return UNKNOWN
    for at, axis in enumerate(axes or range(len(starts))):
        step = steps[at] if at < len(steps) else 1
        whole = starts[at] == 0 and ends[at] >= _FURTHEST - 1 and step == 1
        if _place(axis, flow.rank) == flow.axis and not whole:
            raise MixesError("Slice takes fixed places of the batch")
    return flow


def _transpose(context: Context) -> Flow:
    flow, order = _same(context), context.node.lists.get("perm")
    if flow.axis is None:
        return UNKNOWN
    if order is None:
        return UNKNOWN if flow.rank is None else Flow(flow.rank - 1 - flow.axis, flow.rank)
    return Flow(order.index(flow.axis), len(order)) if flow.axis in order else UNKNOWN


def _flatten(context: Context) -> Flow:
    flow = _same(context)
    axis = _place(context.node.numbers.get("axis", 1), flow.rank)
    return Flow(0, 2) if flow.axis == 0 and axis == 1 else UNKNOWN


def _reshape(context: Context) -> Flow:
    flow, shape = _same(context), context.list("shape", 1)
    # A 0 keeps the size; a -1 may be another than the batch's.
    keeps = bool(shape) and not context.node.numbers.get("allowzero")
    if not keeps or not shape or flow.axis is None or len(shape) <= flow.axis:
        return UNKNOWN
    return Flow(flow.axis, len(shape)) if not any(shape[: flow.axis + 1]) else UNKNOWN


def _squeeze(context: Context) -> Flow:
    flow, axes = _same(context), context.list("axes", 1)
    return _dropped(flow, axes) if axes else UNKNOWN


def _unsqueeze(context: Context) -> Flow:
    flow, axes = _same(context), context.list("axes", 1)
    if not axes or flow.axis is None or (flow.rank is None and min(axes) < 0):
        return UNKNOWN
    rank = None if flow.rank is None else flow.rank + len(axes)
    places = {_place(axis, rank) for axis in axes}
    at = -1
    for _ in range(flow.axis + 1):
        at += 1
        while at in places:
            at += 1
    return Flow(at, rank)


def _product(context: Context) -> Flow:
    """Of MatMul and its quantised kin; Gemm may transpose."""
    node = context.node
    second = 3 if node.operator == "QLinearMatMul" else 1
    places: list[int | None] = []
    ranks: list[int] = []
    for index, transposes in ((0, "transA"), (second, "transB")):
        rank, flow = context.rank(index), context.flow(index)
        if rank is None or rank < 2 or (flow and flow.axis is None):
            return UNKNOWN
        # From the end: 2 is that of rows, 1 of columns.
        place = None if flow is None or flow.axis is None else rank - flow.axis
        if node.numbers.get(transposes) and place is not None:
            place = {1: 2, 2: 1}.get(place, place)
        places.append(place)
        ranks.append(rank)
    left, right = places
    if left == 1 or right == 2:
        raise MixesError(f"{node.operator} multiplies across the batch")
    found = {place for place in places if place is not None}
    if len(found) > 1:
        raise MixesError(f"{node.operator} meets each sample with the others of the batch")
    if not found:
        return UNKNOWN
    return Flow(max(ranks) - found.pop(), max(ranks))


def _reverse_sequence(context: Context) -> Flow:
    _check_axis(context, context.node.numbers.get("time_axis", 0), _same(context))
    return _same(context)


def _recurrent(context: Context) -> Flow:
    node, flow = context.node, _same(context)
    along = 1 if node.numbers.get("layout", 0) else 0
    if flow.axis == along:
        raise MixesError(f"{node.operator} runs along the batch")
    return UNKNOWN


def _dropout(context: Context) -> Flow:
    if context.constant(2) not in (None, (0,), (False,)):
        raise MixesError("Dropout in training mode draws from one sequence for the whole batch")
    return _same(context)


def _random_like(context: Context) -> Flow:
    raise MixesError(f"{context.node.operator} draws from one sequence for the whole batch")


_QUANTISES: Final = "scales a batch as one"

# Mixed in whatever dimension the samples are.
_WHOLE: Final = {
    "DynamicQuantizeLinear": _QUANTISES,
    "DynamicQuantizeMatMul": _QUANTISES,
    "DynamicQuantizeLSTM": _QUANTISES,
    "Unique": "compares all samples of a batch",
    "NonMaxSuppression": "lists what it finds in all samples of a batch as one",
}


def _listed(names: str) -> tuple[str, ...]:
    return tuple(names.split())


# Of ONNX Runtime's own operators, those that the rules speak of.
_MICROSOFT: Final = _listed("""
    BiasGelu DequantizeLinear DynamicQuantizeLSTM DynamicQuantizeMatMul FastGelu FusedConv FusedMatMul Gelu
    QLinearAveragePool QLinearGlobalAveragePool QLinearLeakyRelu QLinearSigmoid QuantizeLinear QuickGelu
    SimplifiedLayerNormalization
""")

_ELEMENTWISE: Final = _listed("""
    Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh DequantizeLinear Elu
    Erf Exp Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not QLinearLeakyRelu
    QLinearSigmoid QuantizeLinear QuickGelu Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus
    Softsign Sqrt Swish Tan Tanh ThresholdedRelu
""")
_PER_SAMPLE: Final = _listed("""
    AveragePool Conv ConvInteger ConvTranspose DepthToSpace FusedConv GlobalAveragePool GlobalLpPool
    GlobalMaxPool LRN LpPool MaxPool QLinearAveragePool QLinearConv QLinearGlobalAveragePool SpaceToDepth
""")
_BROADCASTING: Final = _listed("""
    Add And BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod
    Mul Or PRelu Pow Sub Sum Where Xor
""")
_REDUCTIONS: Final = _listed("""
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare
""")

_RULES: Final[dict[str, Rule]] = (
    dict.fromkeys(_ELEMENTWISE, _same)
    | dict.fromkeys(_PER_SAMPLE, _per_sample)
    | dict.fromkeys(_BROADCASTING, _broadcast)
    | dict.fromkeys(_REDUCTIONS, _reduce)
    | dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _over_axis(-1, flattens_before=13))
    | dict.fromkeys(("ArgMax", "ArgMin"), _over_axis(0, drops=True))
    | dict.fromkeys(("TopK", "LpNormalization"), _over_axis(-1))
    | dict.fromkeys(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), _layer_norm)
    | dict.fromkeys(("InstanceNormalization", "GroupNormalization"), _instance_norm)
    | dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul", "Gemm"), _product)
    | dict.fromkeys(("RNN", "GRU", "LSTM"), _recurrent)
    | dict.fromkeys(("Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike"), _random_like)
    | {
        "BatchNormalization": _batch_norm,
        "CumSum": _along(1),
        "Dropout": _dropout,
        "Flatten": _flatten,
        "Gather": _gather,
        "MeanVarianceNormalization": _mean_variance,
        "Reshape": _reshape,
        "ReverseSequence": _reverse_sequence,
        "Slice": _slice,
        "Squeeze": _squeeze,
        "Transpose": _transpose,
        "Unsqueeze": _unsqueeze,
    }
)
