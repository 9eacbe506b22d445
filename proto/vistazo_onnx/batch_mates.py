"""The operator by which samples of one batch influence each other, found in the graph alone.

The first dimension of every input counts samples. From there each tensor is followed through the graph, its
subgraphs and functions. Only what is sure is said: where nobody can tell which dimension an operator is over,
a trial shows it (`trial.py`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vistazo_onnx.flow import UNKNOWN, Context, Flow, MixesError
from vistazo_onnx.graph import Constant, Graph, Node, OnnxModel, read_model
from vistazo_onnx.operators import flow_of

# Functions that call functions may unfold without end.
_MOST_NODES: Final = 1_000_000

# What these give depends on sizes, never on values.
_ABOUT_SIZES: Final = frozenset({"Shape", "Size", "ConstantOfShape", "EyeLike"})

_LOOPS: Final = frozenset({"Loop", "Scan", "SequenceMap"})


def mixing_operator(path: Path) -> str:
    """Return which operator of the graph at `path` mixes the samples of a batch, and how; empty: none surely.

    Such as "DynamicQuantizeLinear scales a batch as one". What cannot be read mixes nothing for sure.
    """
    try:
        model = read_model(path)
    except (OSError, ValueError):
        return ""
    return mixing_operator_of(model)


def mixing_operator_of(model: OnnxModel) -> str:
    """Return what `mixing_operator` says, of a model that was read."""
    known = _Known({name: Flow(0, rank) for name, rank in model.graph.inputs.items()}, {})
    try:
        _Walk(model).follow(model.graph, known, each_alone=False, opset=model.graph.opset)
    except MixesError as error:
        return str(error)
    except (_TooManyError, RecursionError):
        return ""
    return ""


class _TooManyError(Exception):
    """The graph is too large to be followed."""


@dataclass(slots=True)
class _Known:
    """What is known of the tensors that a graph's nodes can name."""

    flows: dict[str, Flow]
    constants: dict[str, Constant]


class _Walk:
    """One pass over all nodes of a model."""

    def __init__(self, model: OnnxModel) -> None:
        self._functions = model.functions
        self._nodes = 0

    def follow(self, graph: Graph, known: _Known, *, each_alone: bool, opset: int) -> None:
        """Follow the samples through the nodes, and add what is known of their outputs to `known`."""
        known.constants |= graph.constants
        needed = _needed(graph)
        for node in graph.nodes:
            self._nodes += 1
            if self._nodes > _MOST_NODES:
                raise _TooManyError
            if node.outputs and needed.isdisjoint(node.outputs):
                continue
            self._node(node, known, each_alone=each_alone, opset=opset)

    def _node(self, node: Node, known: _Known, *, each_alone: bool, opset: int) -> None:
        if node.operator == "Constant":
            known.constants |= dict.fromkeys(node.outputs, _value(node))
            return
        # A name of an outer graph may be another's in this one.
        for name in node.outputs:
            known.flows.pop(name, None)
            known.constants.pop(name, None)
        depends = any(name in known.flows for name in _names(node))
        if not depends or node.operator in _ABOUT_SIZES:
            return
        flows: dict[str, Flow] = {}
        function = self._functions.get((node.domain, node.operator, node.overload))
        if function is not None:
            flows = self._call(node, function, known, each_alone=each_alone, opset=opset)
        elif node.graphs:
            flows = self._subgraphs(node, known, each_alone=each_alone, opset=opset)
        else:
            flow = flow_of(Context(node, opset, known.flows, known.constants, each_alone))
            # Only of the first output the rules speak, and of those that are like it.
            flows = dict.fromkeys(node.outputs, flow if len(node.outputs) == 1 else UNKNOWN)
            if node.outputs:
                flows[node.outputs[0]] = flow
        known.flows |= {name: flow for name, flow in flows.items() if name}

    def _call(
        self, node: Node, function: Graph, known: _Known, *, each_alone: bool, opset: int
    ) -> dict[str, Flow]:
        inside = _Known({}, {})
        for formal, name in zip(function.inputs, node.inputs, strict=False):
            if name in known.flows:
                inside.flows[formal] = known.flows[name]
            elif name in known.constants:
                inside.constants[formal] = known.constants[name]
        body = Graph(
            [_bound(each, node) for each in function.nodes], {}, function.outputs, {}, function.opset
        )
        self.follow(body, inside, each_alone=each_alone, opset=function.opset or opset)
        return {
            name: inside.flows[formal]
            for formal, name in zip(function.outputs, node.outputs, strict=False)
            if formal in inside.flows
        }

    def _subgraphs(self, node: Node, known: _Known, *, each_alone: bool, opset: int) -> dict[str, Flow]:
        found: list[list[Flow | None]] = []
        for graph in node.graphs.values():
            inside = _Known(dict(known.flows), dict(known.constants))
            for name in graph.inputs:
                inside.constants.pop(name, None)
                inside.flows[name] = UNKNOWN
            self.follow(graph, inside, each_alone=each_alone or node.operator in _LOOPS, opset=opset)
            found.append([inside.flows.get(name) for name in graph.outputs])
        if node.operator != "If":
            return dict.fromkeys(node.outputs, UNKNOWN)
        return {
            name: given[0] if len(given) == 1 and given[0] else UNKNOWN
            for at, name in enumerate(node.outputs)
            if (given := list({flows[at] if at < len(flows) else None for flows in found}))
        }


def _value(node: Node) -> Constant:
    if "value" in node.constants:
        return node.constants["value"]
    if "value_int" in node.numbers:
        return Constant(0, (node.numbers["value_int"],))
    if "value_ints" in node.lists:
        return Constant(1, node.lists["value_ints"])
    # The rest are of floats and texts: one, or a row.
    return Constant(0)


def _names(node: Node) -> set[str]:
    """Return what a node reads, its subgraphs included."""
    names = set(node.inputs)
    for graph in node.graphs.values():
        for inner in graph.nodes:
            names |= _names(inner)
        names |= set(graph.outputs)
    return names - {""}


def _needed(graph: Graph) -> set[str]:
    """Return the tensors that the graph's outputs are made of: what nobody reads mixes nothing."""
    needed = set(graph.outputs)
    for node in reversed(graph.nodes):
        if not needed.isdisjoint(node.outputs):
            needed |= _names(node)
    return needed


def _bound(node: Node, call: Node) -> Node:
    """Return a function's node with the attributes that the call gives it."""
    if not node.references:
        return node
    numbers, lists = dict(node.numbers), dict(node.lists)
    operator = node.operator
    for name, given in node.references.items():
        if given in call.numbers:
            numbers[name] = call.numbers[given]
        elif given in call.lists:
            lists[name] = call.lists[given]
        else:
            # The function's own default: what it does is not known, which no operator's name says.
            operator = ""
    return Node(
        operator, node.domain, node.overload, node.inputs, node.outputs, numbers, lists, node.texts,
        node.constants, node.graphs,
    )  # fmt: skip
