"""What an image costs: decoding, resizing, inference; and so how many the machine could do at most."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from vistazo_bench.measuring.figures import Figure, ratio_figure
from vistazo_bench.measuring.limits import RawEngine, jpeg_bound
from vistazo_bench.measuring.payload import Payload
from vistazo_bench.measuring.rig import Rig
from vistazo_client.cli.worker import Worker

if TYPE_CHECKING:
    from vistazo_bench.measuring.preparation import Preparation, PreparationCost, Preparing

MS: Final = 1000.0

# Decoding is steady; this is enough of it.
PREPARATION_SECONDS: Final = 0.5

RawLimit = tuple[Worker[RawEngine], int, float]
"""The raw engine, its best batch size, and its images per second there."""


@dataclass(slots=True)
class Costs:
    """Measures the raw engine and the preparation of images, as far as they are at hand, once a round."""

    rig: Rig
    model: str
    files: tuple[bytes, ...]
    """Encoded images; empty: none is prepared."""
    raw: RawLimit | None = None
    preparation: "Worker[Preparation] | None" = None
    rates: list[float] = field(default_factory=list)
    """Of the raw engine, images per second, by round."""
    inference: list[float] = field(default_factory=list)
    """CPU seconds an image, of all the raw engine's threads."""
    prepared: "list[PreparationCost]" = field(default_factory=list)

    def measure(self, seconds: float) -> None:
        """Measure another round; the raw engine for so many seconds."""
        if self.raw is not None:
            engine, batch, _ = self.raw
            runs = self.rig.raw(f"{self.model}: raw", engine, batch, seconds)
            self.rates.append(runs.images_per_second)
            self.inference.append(runs.cpu_seconds_per_image)
        if self.preparation is not None:
            from vistazo_bench.measuring.preparation import Preparation  # noqa: PLC0415

            self.prepared.append(self.preparation.call(Preparation.cost, self.files, PREPARATION_SECONDS))

    @property
    def bounds(self) -> list[float]:
        """Images per second that the cores could prepare and classify, by round; empty: not known."""
        if not self.rates or not self.prepared:
            return []
        pairs = zip(self.rates, self.prepared, strict=True)
        return [jpeg_bound(rate, cost.seconds, self.rig.cores) for rate, cost in pairs]

    def figures(self, name: str) -> list[Figure]:
        """Return what an image costs, in ms of CPU; nothing where no image is prepared."""
        if not self.prepared:
            return []
        width, height = self.prepared[0].decoded
        return [
            ratio_figure(
                f"{name}: {what}", values, unit="ms", scale=MS, better="lower", note=f"CPU of an image{note}"
            )
            for what, values, note in (
                ("decoding", [cost.decode_seconds for cost in self.prepared], f", to {width}×{height}"),
                ("resizing and cropping", [cost.resize_seconds for cost in self.prepared], ""),
                ("inference", self.inference, ", ONNX Runtime alone, all its threads"),
            )
            if values
        ]


@contextmanager
def measuring_costs(
    rig: Rig, model: str, payload: Payload, raw: RawLimit | None, preparing: "Preparing | None"
) -> Iterator[Costs]:
    """Hold what measures the costs of a payload's images; without `preparing` that of the engine alone."""
    with ExitStack() as stack:
        preparation = None
        if payload.encoded and preparing is not None:
            from vistazo_bench.measuring.preparation import Preparation  # noqa: PLC0415

            preparation = stack.enter_context(Worker(Preparation, preparing.spec))
        yield Costs(rig, model, payload.encoded, raw, preparation)
