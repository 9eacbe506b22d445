"""`vistazo bench`: the command."""

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
from vistazo_bench.measuring.payload import make_payload, with_references
from vistazo_bench.measuring.rig import Rig
from vistazo_bench.measuring.serving import RunningServer, choose_model, model_folder, serving
from vistazo_bench.reporting.plot import text_plot, write_png
from vistazo_bench.reporting.report import figures_table, one_line, result_object, write_atomically
from vistazo_bench.standard.plan import QUICK, STANDARD
from vistazo_bench.standard.scenarios import Pace, Subject, closed_loop, open_loop
from vistazo_bench.standard.search import search_rate
from vistazo_bench.standard.suite import StandardSet
from vistazo_client._channel import check_address
from vistazo_client.cli.tables import print_table

LOOPBACK = ("127.", "localhost:", "[::1]:")

# Of the machine's CPU, taken by others during a segment: from here on it shows in the figures.
NOISY_SHARE = 0.05

_positive = click.FloatRange(min=0, min_open=True)
_path = click.Path(path_type=Path)


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
    images_per_request: int
    duration: float
    warmup: float
    rounds: int
    channels: int
    seed: int
    standard: bool
    quick: bool


@click.command("bench", context_settings={"max_content_width": 110})
@click.argument("which", type=click.Choice(["standard"]), required=False)
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
    type=click.Choice(["tensor", "jpeg"]),
    default="tensor",
    show_default=True,
    help="Raw pixels of the model's own size, or JPEG files of 500×375.",
)
@click.option("--image", type=_path, help="Picture to send.  [default: a photograph of an installed package]")
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
@click.option("--quick", is_flag=True, help="With --standard: about 3 minutes instead of 15, and coarser.")
@click.option("--plot", type=_path, metavar="FILE", help="Latency by percentile as PNG; needs matplotlib.")
@click.option("--output", type=_path, metavar="FILE", help="Also write the JSON there.")
def bench_command(
    *, which: str | None, plot: Path | None, output: Path | None, standard: bool, **options: object
) -> None:
    """Measure a server, and in the same minutes what the machine itself can do.

    One of: a closed loop (--concurrency), an open loop (--rate), a search (--search), or the standard set
    (`vistazo bench standard`). The last line of standard output is one JSON object. The exit status is 1
    when answers were wrong; missed targets do not change it.
    """
    choices = Choices(standard=standard or which is not None, **options)  # type: ignore[arg-type]
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
        write_atomically(output, result)
    print_table(figures_table(figures, title=_title(choices, scenario)))
    if (elsewhere := rig.elsewhere() or 0.0) > NOISY_SHARE:
        click.echo(
            f"Other processes took up to {elsewhere:.0%} of this machine's CPU during a segment: "
            "repeat on a quiet machine before believing a figure."
        )
    if plot is None:
        print_table(text_plot(rig.series, unicode=(sys.stdout.encoding or "").lower().startswith("utf")))
    else:
        write_png(plot, rig.series, title=_title(choices, scenario))
        click.echo(f"Latency plot: {plot}")
    for wrong in rig.wrong[:3]:
        click.echo(f"Error: wrong answer: {wrong}", err=True)
    click.echo(one_line(result))
    if rig.wrong:
        raise click.exceptions.Exit(1)


def _run(choices: Choices, rig: Rig, figures: list[Figure], commands: list[str]) -> str:
    """Fill `figures` and `commands`, and return the scenario's name."""
    if choices.standard:
        if choices.models is None:
            raise click.UsageError("the standard set starts its own servers: give it --models")
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


def _server(choices: Choices, stack: ExitStack) -> RunningServer:
    if choices.server is not None:
        return RunningServer(choices.server, None, f"already running at {choices.server}")
    if choices.models is None:
        raise click.UsageError("expected --server HOST:PORT or --models DIR")
    only = (choices.model,) if choices.model else ()
    if only and not (choices.models / choices.model).is_dir():
        raise BenchError(f"--model: {choices.models} has no {choices.model}")
    return stack.enter_context(serving(choices.models, choices.serve_options, only=only))


def _subject(choices: Choices, server: RunningServer) -> Subject:
    model = choose_model(server, choices.model)
    payload = make_payload(
        model,
        kind=choices.input_kind,
        images_per_request=choices.images_per_request,
        image=choices.image,
    )
    return Subject(
        model.name,
        server.address,
        with_references(payload, server.address),
        None if choices.models is None else model_folder(choices.models, model.name),
        local=server.address.startswith(LOOPBACK),
    )


def _check(choices: Choices) -> None:
    if choices.search and choices.p99_ms is None:
        raise click.UsageError("--search needs --p99-ms, the bound")
    if sum((choices.search, choices.rate is not None, choices.standard)) > 1:
        raise click.UsageError("expected only one of --rate, --search and the standard set")
    if choices.standard and choices.server is not None:
        raise click.UsageError("the standard set starts its own servers: give it --models, not --server")
    if choices.quick and not choices.standard:
        raise click.UsageError("--quick goes with the standard set")
    if choices.deadline_ms is not None and choices.rate is None:
        raise click.UsageError("--deadline-ms goes with --rate")
    if choices.server is not None:
        try:
            check_address(choices.server)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--server") from error


def _title(choices: Choices, scenario: str) -> str:
    kind = "" if choices.standard else f", {choices.input_kind} input"
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
