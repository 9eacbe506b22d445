"""How the standard set spends its time."""

from dataclasses import dataclass
from typing import Final

RESNET, VGG, ALEXNET, LENET = "resnet18", "vgg16", "alexnet", "lenet"
NETWORKS: Final = (RESNET, VGG, ALEXNET)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much time the set takes."""

    rounds: int
    seconds: float
    """Of a closed-loop segment."""
    open_seconds: float
    """Of an open-loop segment."""
    latencies: float
    """Least length of a closed-loop segment, in times that one request takes."""
    memory_requests: int
    budget_seconds: float
    """Of everything but starting servers."""
    largest_batch: int
    networks: tuple[str, ...]
    """Of lines 1 and 2."""
    quick: bool


STANDARD: Final = Plan(5, 3.0, 15.0, 4.0, 10_000, 780.0, 32, NETWORKS, quick=False)
QUICK: Final = Plan(2, 1.5, 5.0, 3.0, 500, 130.0, 8, (RESNET, ALEXNET), quick=True)

# Shares of the budget. VGG16 takes longest by far.
BUDGET_SHARE: Final = {
    "1 resnet18": 0.08,
    "1 alexnet": 0.07,
    "1 vgg16": 0.19,
    "2": 0.04,
    "3": 0.05,
    "4": 0.15,
    "5": 0.06,
    "6": 0.06,
    "7": 0.22,
}
