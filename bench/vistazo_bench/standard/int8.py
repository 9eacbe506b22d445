"""Line 6 of the standard set: int8 variants against their fp32, in speed and, for the digits, in accuracy."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vistazo_bench.measuring.figures import Figure, ratio_figure, rounds
from vistazo_bench.measuring.rig import Rig
from vistazo_bench.standard.scenarios import Pace, Subject
from vistazo_client.client import Client

SPEED_TARGET: Final = 1.7
ACCURACY_TARGET_POINTS: Final = 1.0

CALLERS: Final = 16
DIGIT_TIMEOUT_SECONDS: Final = 60.0

# The split that LeNet was trained by: `vistazo_export.networks.digits` has the same two numbers, and a test
# compares the images. The client cannot import export.
HELD_OUT_SHARE: Final = 0.25
SPLIT_SEED: Final = 20130


def int8_figures(rig: Rig, fp32: Subject, int8: Subject, pace: Pace, *, latencies: float) -> list[Figure]:
    """Return the served int8 throughput over the served fp32 throughput; for LeNet the loss of accuracy.

    LeNet is bound by gRPC, not by its network: its speed has no target and is not measured.
    """
    if fp32.model == "lenet":
        return [_accuracy_figure(fp32, int8)]
    values: list[float] = []
    latency = pace.settle
    for number in rounds(pace.rounds, pace.budget_seconds):
        rig.say(f"{int8.model}: round {number + 1} of at most {pace.rounds}")
        rates = []
        for subject in (fp32, int8):
            summary = rig.closed(
                f"{subject.model}, {CALLERS} callers",
                subject.address,
                subject.payload,
                concurrency=CALLERS,
                # The first fp32 segment tells how long a request takes.
                seconds=max(pace.seconds, latencies * latency),
                settle=max(pace.settle, 1.5 * latency),
            )
            rates.append(summary.throughput)
            latency = max(latency, summary.p50_seconds) if subject is fp32 else latency
        values.append(rates[1] / rates[0])
    return [
        ratio_figure(f"{int8.model} ÷ {fp32.model}, {CALLERS} callers", values, line=6, target=SPEED_TARGET)
    ]


def held_out_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the digits that no training has seen, N × 8 × 8, and what they are."""
    from sklearn.datasets import load_digits  # noqa: PLC0415  only this line needs it
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    data = load_digits()
    _, held_out = train_test_split(
        np.arange(len(data.target)),
        test_size=HELD_OUT_SHARE,
        random_state=SPLIT_SEED,
        stratify=data.target.astype(np.int64),
    )
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    return images[held_out], data.target[held_out].astype(np.int64)


def _accuracy_figure(fp32: Subject, int8: Subject) -> Figure:
    name = f"{int8.model}: accuracy lost on the held-out digits"
    try:
        images, truth = held_out_digits()
    except ModuleNotFoundError as error:
        return Figure(name, None, "points", 6, note=f"needs the package {error.name}")
    shares = {}
    for subject in (fp32, int8):
        with Client(subject.address, timeout=DIGIT_TIMEOUT_SECONDS) as client:
            answers = client.classify(list(images), model=subject.model, top_k=1)
        labels = np.array([int(answer.top.label) for answer in answers])
        shares[subject.model] = float((labels == truth).mean())
    lost = (shares[fp32.model] - shares[int8.model]) * 100
    return Figure(
        name,
        lost,
        "points",
        6,
        target=ACCURACY_TARGET_POINTS,
        better="lower",
        note=", ".join(f"{model} {share:.2%}" for model, share in shares.items()),
        detail={"accuracy": shares, "digits": len(truth)},
    )
