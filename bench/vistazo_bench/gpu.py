"""`make gpu-check`: whether serving on CUDA works, agrees with the CPU, and how fast it is.

    python -m vistazo_bench.gpu --models DIR [--device cpu] [--quick] [--output FILE]

Serves every model of DIR on the device, asserts the provider, compares the served answers with ONNX Runtime
on the CPU at several batch sizes, and measures tensor and JPEG input by images a request. Prints JSON. Where
there is no GPU it says so in one line and ends with status 0; `--device cpu` rehearses it there.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from vistazo_bench.errors import BenchError
from vistazo_bench.measuring.load import CLASSIFY_METHOD
from vistazo_bench.measuring.machine import describe_machine
from vistazo_bench.measuring.model_files import model_folder
from vistazo_bench.measuring.payload import make_payload, with_references
from vistazo_bench.measuring.rig import Rig
from vistazo_bench.reporting.report import write_json
from vistazo_client._channel import MAX_MESSAGE_BYTES, open_channel
from vistazo_client._images import encode_image
from vistazo_client.cli.serving import RunningServer, serving
from vistazo_client.results import ModelInfo, ScoreKind
from vistazo_proto import classification_pb2 as pb

CUDA_PROVIDER: Final = "CUDAExecutionProvider"

PARITY_BATCHES: Final = (1, 2, 3, 8, 32)
THROUGHPUT_BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128)

# Largest difference of logits over the largest logit. CUDA multiplies FP32 convolutions in TF32, with 10 bits
# of mantissa (a relative error of 5e-4 an operation); on the CPU nothing but the order of sums differs.
TOLERANCE: Final = {"cuda": 1e-2, "cpu": 1e-4}

ANSWER_SECONDS: Final = 120.0

# Enough requests that one is always on its way while another runs.
CALLERS: Final = 4


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is measured."""

    seconds: float
    """Of each segment."""
    batches: Sequence[int]


FULL: Final = Pace(3.0, THROUGHPUT_BATCHES)
QUICK: Final = Pace(0.5, (1, 8))


def why_not_cuda(model: Path) -> str:
    """Return why ONNX Runtime cannot run `model` on CUDA here; empty when it can."""
    import onnxruntime as ort  # noqa: PLC0415  not needed to import the module

    if CUDA_PROVIDER not in ort.get_available_providers():
        return f"this ONNX Runtime ({ort.__version__}) is built without CUDA"
    try:
        ort.preload_dlls()
        options = ort.SessionOptions()
        options.log_severity_level = 4
        session = ort.InferenceSession(str(model), options, providers=[CUDA_PROVIDER])
    except Exception as error:  # noqa: BLE001  ONNX Runtime's exceptions share no base class
        return f"CUDA does not start: {' '.join(str(error).split())[:200]}"
    provider = session.get_providers()[0]
    return "" if provider == CUDA_PROVIDER else f"CUDA does not start: ONNX Runtime took {provider}"


def check_parity(server: RunningServer, model: ModelInfo, folder: Path, device: str) -> dict[str, Any]:
    """Return, for several batch sizes, how far the served answers are from ONNX Runtime on the CPU.

    Raises BenchError when they are further apart than TOLERANCE.
    """
    import onnxruntime as ort  # noqa: PLC0415

    session = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    tensors = make_payload(model, kind="tensor").tensors
    found: dict[str, Any] = {}
    for size in PARITY_BATCHES:
        images = tensors[np.arange(size) % len(tensors)]
        expected = comparable(session.run(None, {name: images})[0], model)
        got = served_probabilities(server, model, images)
        if model.scores is ScoreKind.LOGITS:
            got = centred(np.log(np.maximum(got, 1e-30)))
        difference = float(np.abs(got - expected).max() / np.abs(expected).max())
        agreement = float(np.mean(got.argmax(axis=1) == expected.argmax(axis=1)))
        found[str(size)] = {"max_rel_logit_diff": difference, "top1_agreement": agreement}
        if difference > TOLERANCE[device]:
            raise BenchError(
                f"{model.name} at batch {size}: expected scores within {TOLERANCE[device]:g} of the CPU's, "
                f"got a difference of {difference:.2g}"
            )
    return found


def served_probabilities(
    server: RunningServer, model: ModelInfo, images: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Return the probability of every class, N × classes, as answered to one request."""
    request = pb.ClassifyRequest(
        model=model.name,
        images=[encode_image(image, max_bytes=MAX_MESSAGE_BYTES) for image in images],
        top_k=len(model.labels),
    )
    with open_channel(server.address, MAX_MESSAGE_BYTES) as channel:
        untyped: Any = channel  # its stubs want serializers
        call = untyped.unary_unary(CLASSIFY_METHOD)
        response = pb.ClassifyResponse.FromString(call(request.SerializeToString(), timeout=ANSWER_SECONDS))
    probabilities = np.zeros((len(images), len(model.labels)))
    for row, result in zip(probabilities, response.results, strict=True):
        for one in result.predictions.predictions:
            row[one.index] = one.probability
    return probabilities


def comparable(scores: NDArray[Any], model: ModelInfo) -> NDArray[np.float64]:
    """Return a graph's scores as what served probabilities are compared with, N × classes.

    Logits less what softmax loses; of the other kinds the probabilities.
    """
    if model.scores is ScoreKind.LOGITS:
        return centred(scores)
    wide: NDArray[np.float64] = np.asarray(scores, dtype=np.float64).reshape(len(scores), -1)
    if model.scores is ScoreKind.INDEPENDENT_LOGITS:
        wide = 1 / (1 + np.exp(-np.clip(wide, -700, 700)))
    is_binary = wide.shape[1] == 1 and len(model.labels) == 2
    return np.concatenate([1 - wide, wide], axis=1) if is_binary else wide


def centred(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return logits without what softmax loses: a constant for each row."""
    wide: NDArray[np.float64] = np.asarray(logits, dtype=np.float64)
    wide -= wide.mean(axis=1, keepdims=True)
    return wide


def measure(rig: Rig, server: RunningServer, model: ModelInfo, pace: Pace) -> dict[str, Any]:
    """Return the images per second and the median latency by kind of input and images a request."""
    found: dict[str, Any] = {}
    for kind in ("tensor", "jpeg"):
        if kind == "jpeg" and model.input_channels != 3:
            continue
        found[kind] = {}
        for size in pace.batches:
            rig.say(f"{model.name}: {kind} input, {size} images a request")
            payload = make_payload(model, kind=kind, images_per_request=size)
            payload = with_references(payload, server.address)
            summary = rig.closed(
                f"{model.name}, {kind}, {size} a request",
                server.address,
                payload,
                concurrency=CALLERS,
                seconds=pace.seconds,
                settle=pace.seconds / 6,
            )
            found[kind][str(size)] = {
                "images_per_second": summary.throughput,
                "p50_ms": summary.p50_seconds * 1000,
                "p99_ms": summary.p99_seconds * 1000,
            }
    return found


def check(models: Path, *, device: str, pace: Pace, say: Callable[[str], None]) -> dict[str, Any]:
    """Return everything that was found out. Raises BenchError when the device or an answer is not right."""
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "gpu": gpu_name(),
        "device": device,
        "models": {},
    }
    options = ("--device", device, "--max-batch-size", "128", "--max-message-mb", "128")
    with serving(models, options) as server, Rig(say) as rig:
        for model in server.models().values():
            if model.device != device:
                raise BenchError(f"{model.name}: expected the device {device}, got {model.device}")
            say(f"{model.name}: parity with the CPU")
            result["models"][model.name] = {
                "device": model.device,
                "max_batch_size": model.max_batch_size,
                "parity": check_parity(server, model, model_folder(models, model.name), device),
                "throughput": measure(rig, server, model, pace),
            }
        if rig.wrong:
            raise BenchError(f"wrong answers under load: {rig.wrong[0]}")
    return result


def gpu_name() -> str:
    """Return what nvidia-smi calls the first GPU and its driver; empty without one."""
    try:
        ran = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],  # noqa: S607  wherever the driver put it
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return ran.stdout.strip().split("\n")[0]


@click.command(context_settings={"max_content_width": 110})
@click.option("--models", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--quick", is_flag=True, help="Half a second a segment, two batch sizes.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write the JSON there.")
def main(*, models: Path, device: str, quick: bool, output: Path | None) -> None:
    """Check serving on a GPU; the last line of standard output is JSON."""
    first = next(iter(sorted(models.glob("*/*/model.onnx"))), None)
    if first is None:
        raise click.UsageError(f"{models} has no NAME/VERSION/model.onnx; export some first")
    if device == "cuda" and (reason := why_not_cuda(first)):
        click.echo(f"gpu-check skipped: {reason}")
        return
    try:
        result = check(
            models, device=device, pace=QUICK if quick else FULL, say=lambda text: click.echo(text, err=True)
        )
    except BenchError as error:
        raise click.ClickException(str(error)) from error
    if output is not None:
        write_json(output, result)
    click.echo(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
