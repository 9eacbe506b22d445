"""`vistazo bench agreement`: what reduced decoding costs in answers, picture by picture.

Each picture, enlarged to the 12 megapixels of a phone's photograph and saved as JPEG, is sent to two servers
of a model, one for each `--jpeg-decoding`. Their answers are compared over all classes.
"""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vistazo_bench.errors import BenchError
from vistazo_bench.measuring.figures import Figure
from vistazo_bench.measuring.pictures import JPEG_QUALITY, photograph, shipped_pictures
from vistazo_bench.measuring.rig import Say
from vistazo_client.cli.serving import choose_model, serving
from vistazo_client.client import Client

PIXELS: Final = 4032 * 3024
"""Of each picture, whatever its shape."""

DECODINGS: Final = ("exact", "reduced")
ANSWER_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class Compared:
    """One picture's two answers."""

    picture: str
    size: tuple[int, int]
    """Width and height that it was enlarged to."""
    exact: str
    """The most probable label."""
    reduced: str
    exact_probability: float
    """Of that label."""
    largest_difference: float
    """Of any class's probability."""


class Agreement:
    """Compares the answers of a model of a repository, on servers that it starts."""

    def __init__(
        self, say: Say, repository: Path, *, model: str, options: Sequence[str], image: Path | None
    ) -> None:
        self._say = say
        self._repository = repository
        self._model = model
        self._options = tuple(options)
        self._image = image
        self.commands: list[str] = []
        """The servers that were started."""

    def run(self) -> list[Figure]:
        """Return how often the first classes agree, how far probabilities are apart, and each picture's.

        Raises VistazoError.
        """
        with ExitStack() as stack:
            clients, models = [], []
            for decoding in DECODINGS:
                self._say(f"starting a server that decodes {decoding}")
                options = (*self._options, "--jpeg-decoding", decoding)
                server = stack.enter_context(serving(self._repository, options, only=[self._model]))
                self.commands.append(server.command)
                models.append(choose_model(server.models().values(), self._model))
                clients.append(stack.enter_context(Client(server.address, timeout=ANSWER_SECONDS)))
            if not models[0].labels:
                raise BenchError(f"{self._model} classifies no images")
            compared = [
                self._compare(name, file, size, clients, classes=len(models[0].labels))
                for name, file, size in _enlarged(self._image)
            ]
        return _figures(self._model, compared)

    def _compare(
        self, name: str, file: bytes, size: tuple[int, int], clients: Sequence[Client], *, classes: int
    ) -> Compared:
        self._say(name)
        probabilities: list[NDArray[np.float64]] = []
        labels: list[str] = []
        for client in clients:
            answer = client.classify(file, model=self._model, top_k=classes)
            labels.append(answer.top.label)
            probabilities.append(np.zeros(classes))
            for one in answer.predictions:
                probabilities[-1][one.index] = one.probability
        exact, reduced = probabilities
        difference = float(np.abs(exact - reduced).max())
        return Compared(name, size, labels[0], labels[1], float(exact.max()), difference)


def _enlarged(image: Path | None) -> Iterator[tuple[str, bytes, tuple[int, int]]]:
    """Yield name, JPEG file and size of each picture: `image`, or all that installed packages ship."""
    from PIL import Image  # noqa: PLC0415  not needed to import the command

    paths = shipped_pictures() if image is None else [image]
    if not paths:
        raise BenchError(
            "scikit-learn and scikit-image, which ship pictures, are not installed; give --image"
        )
    for path in paths:
        pixels, name = photograph(path, must=True)
        height, width = pixels.shape[:2]
        scale = math.sqrt(PIXELS / (width * height))
        size = (round(width * scale), round(height * scale))
        file = io.BytesIO()
        enlarged = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        enlarged.save(file, "JPEG", quality=JPEG_QUALITY)
        yield name, file.getvalue(), size


def _figures(model: str, compared: Sequence[Compared]) -> list[Figure]:
    same = [one.exact == one.reduced for one in compared]
    worst = max(compared, key=lambda one: one.largest_difference)
    differences = np.array([one.largest_difference for one in compared])
    others = [f"{one.picture}: {one.exact} → {one.reduced}" for one in compared if one.exact != one.reduced]
    overall = [
        Figure(
            f"{model}: pictures whose most probable class is the same, reduced and exact",
            100 * float(np.mean(same)),
            "%",
            note="; ".join(others) or f"all of {len(compared)}",
            detail={"pictures": [asdict(one) for one in compared]},
        ),
        Figure(
            f"{model}: largest difference of a probability",
            worst.largest_difference,
            better="lower",
            note=worst.picture,
        ),
        Figure(f"{model}: median of each picture's largest", float(np.median(differences)), better="lower"),
    ]
    return overall + [
        Figure(
            f"{model}, {one.picture}",
            one.largest_difference,
            better="lower",
            note=f"{one.exact} ({one.exact_probability:.3f})"
            + ("" if one.exact == one.reduced else f" → {one.reduced}"),
        )
        for one in sorted(compared, key=lambda one: -one.largest_difference)
    ]
