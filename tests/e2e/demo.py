"""`make demo`: from nothing to predictions, by the same commands that a user would type.

Each command is printed before it runs. Exit status 0 only if every step succeeded, and the digits and the
photographs came out right. Nothing is opened. What is there from an earlier run is used again.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import click
from PIL import Image

from vistazo_export.networks import digits

BIN = Path(sys.executable).parent
DIGITS_SHOWN = 20
# lenet gets 98 % of the held-out digits right: 18 of 20 leaves room for two hard ones.
DIGITS_RIGHT = 18
LEAST_TOP1 = 0.95
START_SECONDS = 120

NETWORKS = ("lenet", "efficientnet_lite0", "resnet18", "alexnet", "vgg16")
# Its trained weights come with a package, so they are at hand wherever this could be installed.
TRAINED = "efficientnet_lite0"


@dataclass(frozen=True)
class Photograph:
    """A photograph that a package ships, and the labels of ImageNet that are right for it."""

    path: str
    shows: str
    labels: frozenset[str]

    @property
    def name(self) -> str:
        """Of the file."""
        return Path(self.path).name


PHOTOGRAPHS = (
    Photograph("skimage/data/chelsea.png", "a cat", frozenset({"tabby", "tiger cat", "Egyptian cat"})),
    Photograph("skimage/data/coffee.png", "a coffee", frozenset({"espresso", "cup"})),
    Photograph("skimage/data/rocket.jpg", "a rocket", frozenset({"missile", "projectile"})),
    Photograph("sklearn/datasets/images/china.jpg", "a palace", frozenset({"palace"})),
    Photograph("sklearn/datasets/images/flower.jpg", "a daisy", frozenset({"daisy"})),
)
TOP = 3


@click.command()
@click.option(
    "--models", "folder", type=click.Path(path_type=Path), default=Path("models"), show_default=True
)
@click.option("--work", type=click.Path(path_type=Path), default=Path(".demo"), show_default=True)
@click.argument("names", nargs=-1)
def demo(folder: Path, work: Path, names: tuple[str, ...]) -> None:
    """Export NAMES (by default lenet and four for photographs), serve them, classify, look at the metrics."""
    networks = names or NETWORKS
    started = time.monotonic()
    title("1. Export: from torch to a model repository")
    vistazo("export", *networks, "--models", str(folder), "--allow-untrained")

    title("2. Serve")
    grpc_port, metrics_port = free_port(), free_port()
    server = f"127.0.0.1:{grpc_port}"
    with serving(folder, grpc_port, metrics_port, work):
        vistazo("health", "--server", server, "--wait", str(START_SECONDS))
        vistazo("models", "--server", server)

        title("3. Classify handwritten digits that the network has never seen")
        images = write_digits(work / "digits")
        right = classify_digits(server, images)
        click.echo(f"\n{right} of {len(images)} digits right.")

        title("4. Classify photographs")
        wrong = classify_photographs(server, networks, work / "photographs")

        title("5. A glimpse of the metrics")
        show_metrics(metrics_port)

        title("6. Evaluate on all the digits that the network has never seen")
        report = evaluate_digits(server, work)
    click.echo(
        f"\nDone in {time.monotonic() - started:.0f} s. The models stay in {folder}/; try `make serve`.\n"
        f"The report of the evaluation is {report}: open it in a browser."
    )
    if right < DIGITS_RIGHT:
        raise click.ClickException(
            f"only {right} of {len(images)} digits were right, expected {DIGITS_RIGHT}"
        )
    if wrong:
        raise click.ClickException(f"{TRAINED} did not see what these show: {', '.join(wrong)}")


def title(text: str) -> None:
    """Print a heading."""
    click.secho(f"\n── {text} " + "─" * max(0, 76 - len(text)), bold=True)


def vistazo(*arguments: str, quiet: bool = False) -> str:
    """Run a vistazo command as a user would, showing it; return what it printed if `quiet`."""
    click.secho("$ vistazo " + " ".join(arguments), fg="cyan")
    sys.stdout.flush()
    result = subprocess.run(
        [BIN / "vistazo", *arguments], check=False, text=True, stdout=subprocess.PIPE if quiet else None
    )
    if result.returncode != 0:
        raise click.ClickException(f"`vistazo {arguments[0]}` ended with exit status {result.returncode}")
    return result.stdout or ""


@contextlib.contextmanager
def serving(folder: Path, grpc_port: int, metrics_port: int, work: Path) -> Iterator[None]:
    """Hold a server in the background; end it with SIGTERM and expect a clean exit."""
    arguments = [
        "serve", "--models", str(folder), "--listen", f"127.0.0.1:{grpc_port}",
        "--metrics-listen", f"127.0.0.1:{metrics_port}",
    ]  # fmt: skip
    log = work / "server.log"
    click.secho(f"$ vistazo {' '.join(arguments)} 2> {log} &", fg="cyan")
    work.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen([BIN / "vistazo", *arguments], stderr=file)
    try:
        yield
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
    finally:
        process.kill()
        process.wait()
    if status != 0:
        raise click.ClickException(f"the server ended with exit status {status}; see {log}")
    click.echo("\nThe server drained and ended cleanly.")


def write_digits(folder: Path) -> list[tuple[Path, str]]:
    """Write held-out digits as 8×8 PNG files; return each with the digit that it shows."""
    shutil.rmtree(folder, ignore_errors=True)  # the whole folder is classified: nothing else may be in it
    folder.mkdir(parents=True)
    held_out = digits.held_out()
    files = []
    for index in range(DIGITS_SHOWN):
        path, label = folder / f"digit-{index:02}.png", str(held_out.labels[index])
        Image.fromarray(held_out.images[index]).save(path)
        files.append((path, label))
    return files


def classify_digits(server: str, images: list[tuple[Path, str]]) -> int:
    """Classify the digits through the command; show and return how many came out right."""
    lines = vistazo(
        "classify", str(images[0][0].parent), "--model", "lenet", "--top", "1", "--json",
        "--server", server, quiet=True,
    ).splitlines()  # fmt: skip
    answers = [json.loads(line)["predictions"][0] for line in lines]
    for (path, label), answer in zip(images, answers, strict=True):
        mark = click.style("✓", fg="green") if answer["label"] == label else click.style("✗", fg="red")
        click.echo(
            f"  {mark} {path.name} shows {label}, answered {answer['label']} ({answer['probability']:.1%})"
        )
    return sum(answer["label"] == label for (_, label), answer in zip(images, answers, strict=True))


def classify_photographs(server: str, networks: Sequence[str], folder: Path) -> list[str]:
    """Show what the trained networks make of the photographs, and name the untrained ones.

    Returns the photographs that TRAINED was wrong about.
    """
    copy_photographs(folder)
    untrained = untrained_models(server)
    wrong: list[str] = []
    for network in networks:
        if network == "lenet" or network in untrained:
            continue
        arguments = (
            "classify", str(folder), "--model", network, "--top", str(TOP),
            "--server", server, "--timeout", "60",
        )  # fmt: skip
        vistazo(*arguments)
        if network == TRAINED:
            wrong = check_photographs(vistazo(*arguments, "--json", quiet=True))
    if untrained := [network for network in networks if network in untrained]:
        click.echo(f"\n{untrained_notice(untrained)}")
    return wrong


def check_photographs(lines: str) -> list[str]:
    """Show whether each photograph's label is among the first, from JSON lines; return those that failed."""
    answers = {
        Path(answer["image"]).name: answer["predictions"] for answer in map(json.loads, lines.splitlines())
    }
    wrong = []
    for photograph in PHOTOGRAPHS:
        seen = [prediction["label"] for prediction in answers[photograph.name]]
        found = next((label for label in seen if label in photograph.labels), None)
        mark = click.style("✓", fg="green") if found else click.style("✗", fg="red")
        click.echo(f"  {mark} {photograph.name} shows {photograph.shows}: {found or ', '.join(seen)}")
        if found is None:
            wrong.append(photograph.name)
    return wrong


def untrained_models(server: str) -> set[str]:
    """Return the names of the served models whose weights are random numbers."""
    models = map(json.loads, vistazo("models", "--json", "--server", server, quiet=True).splitlines())
    return {model["name"] for model in models if model["weights"] == "untrained"}


def untrained_notice(networks: Sequence[str]) -> str:
    """Say why these networks' answers are not shown, and what would change that."""
    listed = " and ".join(filter(None, [", ".join(networks[:-1]), networks[-1]]))
    return (
        f"{listed}: served, too, but UNTRAINED, so that the answers mean nothing and are not shown.\n"
        "What is needed is the published weights, from their own host or a mirror\n"
        f"(vistazo export {networks[0]} --weights-mirror URL), or weights of your own (--weights FILE)."
    )


def copy_photographs(folder: Path) -> None:
    """Copy the photographs out of their packages, so that the commands shown can be repeated."""
    shutil.rmtree(folder, ignore_errors=True)  # the whole folder is classified: nothing else may be in it
    folder.mkdir(parents=True)
    for photograph in PHOTOGRAPHS:
        package, _, inside = photograph.path.partition("/")
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise click.ClickException(f"the package {package} is not installed; run `make install`")
        shutil.copyfile(Path(spec.origin).parent / inside, folder / photograph.name)


def evaluate_digits(server: str, work: Path) -> Path:
    """Evaluate lenet on the held-out digits, a folder for each, and return the report.

    On the server that runs, as another one would have to warm up all the networks again.
    """
    folder, report = work / "held-out", work / "lenet.html"
    shutil.rmtree(folder, ignore_errors=True)
    digits.write_folder(digits.held_out(), folder)
    vistazo(
        "evaluate", str(folder), "--model", "lenet", "--server", server,
        "--min-top1", str(LEAST_TOP1), "--report", str(report),
    )  # fmt: skip
    return report


def show_metrics(port: int) -> None:
    """Print the lines of the Prometheus endpoint that tell the most."""
    wanted = ("vistazo_inference_requests_total", "vistazo_inference_batches_total", "vistazo_model_ready")
    url = f"http://127.0.0.1:{port}/metrics"
    click.secho(f"$ curl -s {url} | grep -E '^({'|'.join(wanted)})'", fg="cyan")
    with urllib.request.urlopen(url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    shown = [line for line in lines if line.startswith(wanted) and not line.endswith(" 0.0")]
    if not shown:
        raise click.ClickException(f"{url} has no inference metrics")
    click.echo("\n".join(shown))


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    demo()
