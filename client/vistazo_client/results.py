"""What calls return: frozen records, plain Python inside, nothing of protobuf."""

from dataclasses import dataclass, field
from enum import StrEnum

from vistazo_client.errors import VistazoError


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class that an image may show."""

    index: int
    """Class index, from 0."""
    label: str
    """The class's label from the model's manifest."""
    probability: float
    """0 to 1."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the server's time went, in seconds, for the slowest image of the request.

    Stages of different images overlap, so the sum may exceed the time that the caller saw.
    """

    queue_seconds: float = 0.0
    """Waiting for the engine."""
    preprocess_seconds: float = 0.0
    """Decoding, resizing and cropping."""
    compute_seconds: float = 0.0
    """Running the batch."""


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer for one image: its predictions, or why there are none."""

    predictions: tuple[Prediction, ...] = ()
    """The most probable classes, best first; empty when `error` is set, or when none reached the
    `min_probability` of the call."""
    model: str = ""
    """Name of the model that answered; empty when the image was never sent."""
    version: str = ""
    """Version of that model."""
    batch_size: int = 0
    """Images in the largest batch that this image's request rode in, strangers' included."""
    timing: Timing = field(default_factory=Timing)
    """Where the time of the request went."""
    error: VistazoError | None = None
    """Why this image was not answered; None when it was."""

    @property
    def top(self) -> Prediction:
        """The most probable class.

        Raises `error` when there is one, and LookupError when no class reached `min_probability`.
        """
        self.raise_for_error()
        if not self.predictions:
            raise LookupError("no class reached min_probability: the image has no predictions")
        return self.predictions[0]

    def raise_for_error(self) -> None:
        """Raise `error` when there is one; else do nothing."""
        if self.error is not None:
            raise self.error


class ModelState(StrEnum):
    """What a model is doing."""

    UNKNOWN = "UNKNOWN"
    """The server said nothing that this client knows."""
    LOADING = "LOADING"
    READY = "READY"
    FAILED = "FAILED"
    """`ModelInfo.reason` says why."""
    UNLOADING = "UNLOADING"


class ScoreKind(StrEnum):
    """What a model's scores are, and so what its probabilities mean."""

    UNKNOWN = "UNKNOWN"
    """The server said nothing that this client knows."""
    LOGITS = "LOGITS"
    """The classes exclude each other: probabilities are the softmax of the scores, and sum to 1."""
    PROBABILITIES = "PROBABILITIES"
    """The classes exclude each other: probabilities are the scores, and sum to 1."""
    INDEPENDENT = "INDEPENDENT"
    """Each class has a probability of its own, the score. Of a binary model, which scores the second of two
    classes alone, the first has 1 minus that."""
    INDEPENDENT_LOGITS = "INDEPENDENT_LOGITS"
    """Each class has a probability of its own, the sigmoid of the score."""


@dataclass(frozen=True, slots=True)
class BatchLatency:
    """Measured time of one run at one batch size."""

    batch_size: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One version of a model as the server sees it.

    While the server has not read the model's manifest, everything after `reason` is empty or 0.
    """

    name: str
    version: str
    state: ModelState
    reason: str = ""
    """Why a FAILED model failed."""
    input_height: int = 0
    input_width: int = 0
    input_channels: int = 0
    """1 (grey) or 3 (RGB)."""
    labels: tuple[str, ...] = field(default=(), repr=False)
    """One label for each class, in index order."""
    weights: str = ""
    """Where they came from: "pretrained", "checkpoint" or "untrained"."""
    precision: str = ""
    """"fp32", "fp16" or "int8"."""
    max_batch_size: int = 0
    device: str = ""
    """What runs it: "cpu" or "cuda"; empty until loaded."""
    latencies: tuple[BatchLatency, ...] = ()
    """The measured latency table, by batch size."""
    scores: ScoreKind = ScoreKind.UNKNOWN
    """What the model's scores are, and so whether the probabilities of all classes sum to 1."""
    one_by_one: str = ""
    """Why each sample runs alone; empty: batches are fine."""
    jpeg_decoding: str = ""
    """"exact", or "reduced": JPEGs much larger than needed are decoded at a fraction of their size, and
    answers may differ a little. Empty: the server did not say, or the model takes no images."""

    @property
    def ready(self) -> bool:
        """Whether the model answers requests."""
        return self.state is ModelState.READY

    @property
    def untrained(self) -> bool:
        """Whether the weights are random, so that the answers mean nothing."""
        return self.weights == "untrained"
