"""Flow: where the samples of a batch are in a tensor, and what is known of a node's inputs."""

from dataclasses import dataclass
from typing import Final

from vistazo_onnx.graph import Constant, Node


class MixesError(Exception):
    """Samples of a batch influence each other; the message names the operator and how."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Where the samples are in a tensor that depends on the graph's inputs."""

    axis: int | None
    """The dimension that counts them; None: not known."""
    rank: int | None = None


UNKNOWN: Final = Flow(None)


@dataclass(slots=True)
class Context:
    """What is known of a node's inputs."""

    node: Node
    opset: int
    flows: dict[str, Flow]
    """Those that depend on the graph's inputs; all others are constants."""
    constants: dict[str, Constant]
    each_alone: bool
    """In the body of a loop, which may see one sample at a time."""

    def flow(self, index: int) -> Flow | None:
        """Return where the samples are in an input; None: it is a constant, or left out."""
        return self.flows.get(self.node.inputs[index]) if index < len(self.node.inputs) else None

    def has(self, index: int) -> bool:
        """Return whether the input is given."""
        return index < len(self.node.inputs) and bool(self.node.inputs[index])

    def constant(self, index: int) -> tuple[int, ...] | None:
        """Return the numbers of an input; None where they are not known before a run."""
        if not self.has(index) or self.flow(index) is not None:
            return None
        found = self.constants.get(self.node.inputs[index])
        return found.numbers if found else None

    def rank(self, index: int) -> int | None:
        """Return the rank of an input, where it is known."""
        if flow := self.flow(index):
            return flow.rank
        found = self.constants.get(self.node.inputs[index])
        return found.rank if found else None

    def list(self, name: str, index: int) -> tuple[int, ...] | None:
        """Return a list that was an attribute once and is an input now; () where it is left out."""
        if name in self.node.lists:
            return self.node.lists[name]
        return self.constant(index) if self.has(index) else ()
