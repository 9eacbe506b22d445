"""`vistazo bench photographs`: photographs of phones, decoded whole, reduced, or prepared beforehand.

Two servers of a model, one for each `--jpeg-decoding`, take turns with the raw engine on one machine:

    exact      JPEG files of 12 megapixels, all pixels decoded
    reduced    the same files, decoded at a fraction of their size
    local      pixels that were prepared beforehand, as clients on other machines would prepare them
    small      JPEG files of 500×375, all pixels decoded: there is nothing to reduce

Where an image takes a second of 16 callers' time, a segment has to be some seconds long.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from vistazo_bench.measuring.figures import Figure, ratio_figure, rounds
from vistazo_bench.measuring.model_files import model_folder
from vistazo_bench.measuring.payload import make_payload, with_references
from vistazo_bench.measuring.pictures import JPEG_SIZE
from vistazo_bench.measuring.preparation import ask_preparing
from vistazo_bench.measuring.rig import Rig
from vistazo_bench.standard.costs import Costs, measuring_costs
from vistazo_bench.standard.scenarios import Pace, Subject, raw_limit
from vistazo_client.cli.serving import choose_model, serving

PHONE_SIZE: Final = (4032, 3024)
"""Width and height of a phone's photograph: 12 megapixels."""

REDUCED_TARGET: Final = 3.0
LOCAL_TARGET: Final = 0.9

# Least length of a segment, in times that one request takes.
LATENCIES: Final = 3.0

DECODINGS: Final = ("exact", "reduced")


class Photographs:
    """Measures one model of a repository, on servers that it starts."""

    def __init__(
        self,
        rig: Rig,
        repository: Path,
        *,
        model: str,
        options: Sequence[str],
        image: Path | None,
        size: tuple[int, int] | None,
        concurrency: int,
        pace: Pace,
    ) -> None:
        self._rig = rig
        self._repository = repository
        self._model = model
        self._options = tuple(options)
        self._image = image
        self._size = size
        self._concurrency = concurrency
        self._pace = pace
        self.commands: list[str] = []
        """The servers that were started."""

    def run(self) -> list[Figure]:
        """Return the figures. Raises VistazoError."""
        with ExitStack() as stack:
            subjects = self._subjects(stack)
            local, exact = subjects["local"], subjects["exact"]
            raw = stack.enter_context(raw_limit(self._rig, local, self._pace))
            costs = {
                way: stack.enter_context(
                    measuring_costs(self._rig, self._model, subject.payload, raw, subject.preparing)
                )
                for way, subject in subjects.items()
            }
            rates: dict[str, list[float]] = {way: [] for way in subjects}
            for number in rounds(self._pace.rounds, self._pace.budget_seconds):
                self._rig.say(f"{self._model}: round {number + 1} of at most {self._pace.rounds}")
                for way, subject in subjects.items():
                    costs[way].measure(self._pace.seconds)
                    rates[way].append(self._served(way, subject, costs[way]))
            return self._figures(rates, costs, exact.payload.source)

    def _subjects(self, stack: ExitStack) -> dict[str, Subject]:
        """Return what is measured, by its name, on servers that end with the stack."""
        large: dict[str, object] = {
            "kind": "jpeg" if self._image is None or self._size is not None else "file",
            "image": self._image,
            "size": self._size or (PHONE_SIZE if self._image is None else None),
        }
        subjects: dict[str, Subject] = {}
        for decoding in DECODINGS:
            self._rig.say(f"starting a server that decodes {decoding}")
            options = (*self._options, "--jpeg-decoding", decoding)
            server = stack.enter_context(serving(self._repository, options, only=[self._model]))
            self.commands.append(server.command)
            model = choose_model(server.models().values(), self._model)
            preparing = ask_preparing(server.address, model)
            wanted: dict[str, dict[str, object]] = {decoding: large}
            if decoding == "exact":
                wanted["local"] = {**large, "kind": "local", "preparing": preparing}
                wanted["small"] = {"kind": "jpeg", "image": self._image, "size": JPEG_SIZE}
            for way, options_of in wanted.items():
                payload = with_references(make_payload(model, **options_of), server.address)  # type: ignore[arg-type]
                folder = model_folder(self._repository, model.name)
                subjects[way] = Subject(
                    model.name, server.address, payload, folder, local=True, preparing=preparing
                )
        # Side by side, as each is compared with its neighbour.
        return {way: subjects[way] for way in ("local", "exact", "reduced", "small")}

    def _served(self, way: str, subject: Subject, costs: Costs) -> float:
        """Return the images per second of one segment."""
        expected = (costs.bounds or costs.rates)[-1]
        latency = self._concurrency / expected
        return self._rig.closed(
            f"{self._model}, {way}, {self._concurrency} callers",
            subject.address,
            subject.payload,
            concurrency=self._concurrency,
            seconds=max(self._pace.seconds, LATENCIES * latency),
            settle=max(self._pace.settle, 1.5 * latency),
        ).throughput

    def _figures(self, rates: dict[str, list[float]], costs: dict[str, Costs], source: str) -> list[Figure]:
        name = f"{self._model}, {self._concurrency} callers"
        figures = [
            ratio_figure(f"{name}, exact: throughput", rates["exact"], unit="images/s", note=source),
            ratio_figure(f"{name}, reduced: throughput", rates["reduced"], unit="images/s"),
            ratio_figure(f"{name}, local: throughput", rates["local"], unit="images/s"),
            ratio_figure(
                f"{name}, JPEG {JPEG_SIZE[0]}×{JPEG_SIZE[1]}, exact: throughput",
                rates["small"],
                unit="images/s",
            ),
            ratio_figure(
                f"{name}: reduced ÷ exact",
                _ratios(rates["reduced"], rates["exact"]),
                target=REDUCED_TARGET,
            ),
            ratio_figure(
                f"{name}, local: of ONNX Runtime alone",
                _ratios(rates["local"], costs["local"].rates),
                target=LOCAL_TARGET,
                note="pixels prepared beforehand",
            ),
        ]
        for way in ("exact", "reduced", "small"):
            bounds = costs[way].bounds
            figures.append(
                ratio_figure(
                    f"{name}, {way}: of what raw throughput and decode time allow",
                    _ratios(rates[way], bounds),
                    detail={"bound_images_per_second": bounds},
                )
            )
            figures += costs[way].figures(f"{self._model}, {way}")
        return figures


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(above, below, strict=True)]
