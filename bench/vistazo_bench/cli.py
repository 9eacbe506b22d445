"""`vistazo bench`: the command."""

import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from vistazo_bench.errors import BenchError
from vistazo_bench.measuring.figures import Figure
from vistazo_bench.measuring.model_files import model_folder
from vistazo_bench.measuring.payload import make_payload, with_references
from vistazo_bench.measuring.rig import Rig
from vistazo_bench.reporting.plot import text_plot, write_png
from vistazo_bench.reporting.report import figures_table, one_line, result_object, write_json
from vistazo_bench.standard.agreement import Agreement
from vistazo_bench.standard.plan import QUICK, RESNET, STANDARD
from vistazo_bench.standard.scenarios import Pace, Subject, closed_loop, open_loop
from vistazo_bench.standard.search import search_rate
from vistazo_bench.standard.suite import StandardSet
from vistazo_client._channel import check_address
from vistazo_client.cli.serving import RunningServer, choose_model, serving
from vistazo_client.cli.tables import print_table

LOOPBACK = ("127.", "localhost:", "[::1]:")

# Of the machine's CPU, taken by others during a segment: from here on it shows in the figures.
NOISY_SHARE = 0.05

# Of a JPEG.
LONGEST_EDGE = 65_500

_positive = click.FloatRange(min=0, min_open=True)
_path = click.Path(path_type=Path)


def _read_size(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[int, int] | None:
    """Return width and height of WIDTHxHEIGHT."""
    del context
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,4})[x×]([1-9]\d{0,4})", text)
    if found is None or max(int(found[1]), int(found[2])) > LONGEST_EDGE:
        raise click.BadParameter(f"expected WIDTHxHEIGHT, such as 4032x3024, got {text!r}", param=parameter)
    return int(found[1]), int(found[2])


@dataclass(frozen=True, slots=True)
class Choices:
    """The command line, checked."""

    server: str | None
    models: Path | None
    serve_options: tuple[str, ...]
    model: str
    concurrency: int
    rate: float | None
    deadline_ms: float | None
    search: bool
    p99_ms: float | None
    input_kind: str
    image: Path | None
    size: tuple[int, int] | None
    images_per_request: int
    duration: float
    warmup: float
    rounds: int
    channels: int
    seed: int
    which: str
    """standard, photographs, agreement, or empty: the load that the options say."""
    quick: bool


@click.command("bench", context_settings={"max_content_width": 110})
@click.argument("which", type=click.Choice(["standard", "photographs", "agreement"]), required=False)
@click.option("--server", metavar="HOST:PORT", help="A server that runs already.")
@click.option(
    "--models",
    type=_path,
    help="Model repository. Without --server, `vistazo serve` is started on it, on loopback, and ended "
    "afterwards. Its model.onnx is what the raw engine runs.",
)
@click.option(
    "--serve-option",
    "serve_options",
    multiple=True,
    metavar="OPTION",
    help="Passed to `vistazo serve`, such as --serve-option=--max-batch-size=16.",
)
@click.option("--model", default="", help="Name of the model.  [default: the only one served]")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 4096),
    default=16,
    show_default=True,
    help="Closed loop: so many callers, each with one request at a time.",
)
@click.option("--rate", type=_positive, help="Open loop instead: Poisson arrivals, requests per second.")
@click.option("--deadline-ms", type=_positive, help="With --rate: the deadline of each request.")
@click.option("--search", is_flag=True, help="Search the highest Poisson rate with p99 under --p99-ms.")
@click.option("--p99-ms", type=_positive, help="With --search: the bound.")
@click.option(
    "--input",
    "input_kind",
    type=click.Choice(["tensor", "file", "jpeg", "local"]),
    help="tensor: pixels of the model's own size, sampled from the picture. file: the picture of --image as "
    "it is. jpeg: JPEG files made of the picture, of --size. local: pixels prepared beforehand from such "
    "files, as clients on other machines would.  [default: file with --image, jpeg with --size, else tensor]",
)
@click.option(
    "--image",
    type=_path,
    help="Picture to send: JPEG, PNG, WebP or BMP.  [default: a photograph of an installed package]",
)
@click.option(
    "--size",
    metavar="WIDTHxHEIGHT",
    callback=_read_size,
    help="Make JPEG files of this size of the picture, such as 4032x3024.  [default for jpeg: 500x375]",
)
@click.option(
    "--images-per-request",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Images that each request carries.",
)
@click.option(
    "--duration",
    type=_positive,
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="Of each segment; what is served and its limits take turns.",
)
@click.option(
    "--warmup",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Load before each segment, which does not count.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    default=3,
    show_default=True,
    help="How often the segments are repeated; each figure is the median of the rounds.",
)
@click.option(
    "--channels",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Connections of the load generator.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the Poisson arrivals.")
@click.option("--standard", is_flag=True, help="The standard set: the figures that Vistazo promises.")
@click.option(
    "--quick",
    is_flag=True,
    help="With standard: about 3 minutes instead of 15; with photographs: about 1 instead of 3. Coarser.",
)
@click.option("--plot", type=_path, metavar="FILE", help="Latency by percentile as PNG; needs matplotlib.")
@click.option("--output", type=_path, metavar="FILE", help="Also write the JSON there.")
def bench_command(
    *, which: str | None, plot: Path | None, output: Path | None, standard: bool, **options: object
) -> None:
    """Measure a server, and in the same minutes what the machine itself can do.

    One of: a closed loop (--concurrency), an open loop (--rate), a search (--search), the standard set
    (`vistazo bench standard`), photographs of 12 megapixels in three ways (`vistazo bench photographs`), or
    how far answers to such with reduced decoding are from exact ones (`vistazo bench agreement`). With
    encoded images each load says what decoding, resizing and inference cost. The last line of standard
    output is one JSON object. The exit status is 1 when answers were wrong; missed targets do not change it.
    """
    _check_input(options)
    choices = Choices(which="standard" if standard else which or "", **options)  # type: ignore[arg-type]
    _check(choices)
    if plot is not None and find_spec("matplotlib") is None:
        # Now, not after the minutes that measuring takes.
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
    figures: list[Figure] = []
    commands: list[str] = []
    with _terminated_like_interrupted(), _progress() as say, Rig(say, channels=choices.channels) as rig:
        scenario = _run(choices, rig, figures, commands)
    result = result_object(
        figures, rig, scenario=scenario, command=" ".join(["vistazo", *sys.argv[1:]]), commands=commands
    )
    if output is not None:
        write_json(output, result)
    print_table(figures_table(figures, title=_title(choices, scenario)))
    if (elsewhere := rig.elsewhere() or 0.0) > NOISY_SHARE:
        click.echo(
            f"Other processes took up to {elsewhere:.0%} of this machine's CPU during a segment: "
            "repeat on a quiet machine before believing a figure."
        )
    if plot is None and rig.series:
        print_table(text_plot(rig.series, unicode=(sys.stdout.encoding or "").lower().startswith("utf")))
    elif plot is not None:
        write_png(plot, rig.series, title=_title(choices, scenario))
        click.echo(f"Latency plot: {plot}")
    for wrong in rig.wrong[:3]:
        click.echo(f"Error: wrong answer: {wrong}", err=True)
    click.echo(one_line(result))
    if rig.wrong:
        raise click.exceptions.Exit(1)


def _run(choices: Choices, rig: Rig, figures: list[Figure], commands: list[str]) -> str:
    """Fill `figures` and `commands`, and return the scenario's name."""
    if choices.which and choices.models is None:
        raise click.UsageError(f"{choices.which} starts its own servers: give it --models")
    if choices.which == "photographs" and choices.models is not None:
        return _photographs(choices, choices.models, rig, figures, commands)
    if choices.which == "agreement" and choices.models is not None:
        return _agreement(choices, choices.models, rig, figures, commands)
    if choices.which == "standard" and choices.models is not None:
        plan = QUICK if choices.quick else STANDARD
        standard = StandardSet(
            rig, choices.models, plan=plan, options=choices.serve_options, seed=choices.seed
        )
        for figure in standard.run():
            figures.append(figure)
            measured = "–" if figure.measured is None else f"{figure.measured:.3f} {figure.unit}"
            rig.say(f"{figure.line}. {figure.name}: {measured} {figure.note}")
        commands += standard.commands
        return "standard, quick" if choices.quick else "standard"
    with ExitStack() as stack:
        server = _server(choices, stack)
        commands.append(server.command)
        subject = _subject(choices, server)
        rig.say(f"{subject.model} at {subject.address}: {subject.payload.images_hint}")
        pace = Pace(choices.rounds, choices.duration, choices.warmup, budget_seconds=3600.0)
        if choices.search:
            bound = (choices.p99_ms or 0.0) / 1000
            figures += search_rate(rig, subject, pace, p99_seconds=bound, seed=choices.seed)
            return "search"
        if choices.rate is not None:
            deadline = None if choices.deadline_ms is None else choices.deadline_ms / 1000
            figures += open_loop(rig, subject, pace, rate=choices.rate, deadline=deadline, seed=choices.seed)
            return "open loop"
        figures += closed_loop(rig, subject, pace, concurrency=choices.concurrency)
        return "closed loop"


def _photographs(choices: Choices, models: Path, rig: Rig, figures: list[Figure], commands: list[str]) -> str:
    # It needs Pillow, which the other kinds of load do not.
    from vistazo_bench.standard.photographs import Photographs  # noqa: PLC0415

    plan = QUICK if choices.quick else STANDARD
    model = choices.model or RESNET
    _check_has(models, model)
    photographs = Photographs(
        rig,
        models,
        model=model,
        options=choices.serve_options,
        image=choices.image,
        size=choices.size,
        concurrency=choices.concurrency,
        pace=Pace(plan.rounds, plan.seconds, 0.5, plan.budget_seconds, plan.largest_batch),
    )
    figures += photographs.run()
    commands += photographs.commands
    return f"photographs{', quick' if choices.quick else ''}"


def _agreement(choices: Choices, models: Path, rig: Rig, figures: list[Figure], commands: list[str]) -> str:
    if not choices.model:
        raise click.UsageError("agreement is that of one model: give it --model, best of trained weights")
    _check_has(models, choices.model)
    agreement = Agreement(
        rig.say, models, model=choices.model, options=choices.serve_options, image=choices.image
    )
    figures += agreement.run()
    commands += agreement.commands
    return "agreement"


def _check_has(models: Path, model: str) -> None:
    if not (models / model).is_dir():
        raise BenchError(f"--model: {models} has no {model}")


def _server(choices: Choices, stack: ExitStack) -> RunningServer:
    if choices.server is not None:
        return RunningServer(choices.server, None, f"already running at {choices.server}")
    if choices.models is None:
        raise click.UsageError("expected --server HOST:PORT or --models DIR")
    only = (choices.model,) if choices.model else ()
    if only:
        _check_has(choices.models, choices.model)
    return stack.enter_context(serving(choices.models, choices.serve_options, only=only))


def _subject(choices: Choices, server: RunningServer) -> Subject:
    model = choose_model(server.models().values(), choices.model)
    preparing = None
    if choices.input_kind != "tensor":
        # It needs Pillow.
        from vistazo_bench.measuring.preparation import ask_preparing  # noqa: PLC0415

        try:
            preparing = ask_preparing(server.address, model)
        except BenchError as error:
            if choices.input_kind == "local":
                raise
            click.echo(f"What decoding and resizing cost is not measured: {error}", err=True)
    payload = make_payload(
        model,
        kind=choices.input_kind,
        images_per_request=choices.images_per_request,
        image=choices.image,
        size=choices.size,
        preparing=preparing,
    )
    return Subject(
        model.name,
        server.address,
        with_references(payload, server.address),
        None if choices.models is None else model_folder(choices.models, model.name),
        local=server.address.startswith(LOOPBACK),
        preparing=preparing,
    )


def _check(choices: Choices) -> None:
    if choices.search and choices.p99_ms is None:
        raise click.UsageError("--search needs --p99-ms, the bound")
    if sum((choices.search, choices.rate is not None, bool(choices.which))) > 1:
        raise click.UsageError("expected only one of --rate, --search and what is named")
    if choices.which and choices.server is not None:
        raise click.UsageError(f"{choices.which} starts its own servers: give it --models, not --server")
    if choices.quick and choices.which not in ("standard", "photographs"):
        raise click.UsageError("--quick goes with standard and photographs")
    if choices.deadline_ms is not None and choices.rate is None:
        raise click.UsageError("--deadline-ms goes with --rate")
    if choices.server is not None:
        try:
            check_address(choices.server)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--server") from error


def _check_input(options: dict[str, object]) -> None:
    """Fill in which input is meant, and refuse what does not fit together."""
    kind, image, size = options["input_kind"], options["image"], options["size"]
    if kind is None:
        kind = options["input_kind"] = "jpeg" if size else "file" if image else "tensor"
    if kind == "file" and (image is None or size is not None):
        raise click.UsageError("--input file is the picture of --image as it is: give it that, and no --size")
    if kind == "tensor" and size is not None:
        raise click.UsageError("--size goes with --input jpeg and local")


def _title(choices: Choices, scenario: str) -> str:
    kind = "" if choices.which else f", {choices.input_kind} input"
    short = "; the quick set: short segments, coarse figures" if choices.quick else ""
    return f"vistazo bench: {scenario}{kind}{short}"


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Give a function that says on standard error what is going on."""
    console = Console(stderr=True, highlight=False, markup=False)
    if not console.is_terminal:
        yield lambda text: click.echo(text, err=True)
        return
    with console.status("starting") as status:
        yield status.update


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """End on SIGTERM as on Ctrl-C: with every process that was started."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
