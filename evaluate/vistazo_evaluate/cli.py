"""`vistazo evaluate`: the command."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vistazo_client.cli.files import write_atomically
from vistazo_client.cli.options import server_options
from vistazo_client.cli.serving import choose_model, serving
from vistazo_client.client import Client
from vistazo_client.results import ModelInfo
from vistazo_evaluate.answers import INDEPENDENT
from vistazo_evaluate.dataset import Dataset, read_dataset
from vistazo_evaluate.errors import EvaluationError
from vistazo_evaluate.evaluation.compared import compare_models
from vistazo_evaluate.evaluation.judge import Judged, judge, match
from vistazo_evaluate.evaluation.outcome import Gate, Outcome, as_json
from vistazo_evaluate.metrics.multi_label import MultiLabelMetrics
from vistazo_evaluate.names.mapping import read_mapping
from vistazo_evaluate.tables import print_outcome

_NEEDED = ("sklearn", "scipy", "matplotlib", "jinja2", "PIL")

# Of the images that failed, so many are told one by one.
_MOST_FAILURES = 20

_path = click.Path(path_type=Path)
_file = click.Path(path_type=Path, dir_okay=False)


class _Share(click.FloatRange):
    """A number of 0 to 1, which "nan" is none of."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))  # type: ignore[arg-type]  # click's own signature is narrower
        if not 0 <= number <= 1:
            self.fail(f"{value} is not in the range 0<=x<=1.", param, ctx)
        return number


_share = _Share(0, 1)


@dataclass(frozen=True, slots=True)
class Choices:
    """The command line, checked."""

    data: Path
    models: Path | None
    serve_options: tuple[str, ...]
    model: str
    version: str
    baseline: str | None
    baseline_server: str | None
    baseline_serve_options: tuple[str, ...]
    mapping: Path | None
    recursive: bool
    threshold: float
    min_top1: float | None
    min_map: float | None
    max_failed: int | None

    @property
    def has_baseline(self) -> bool:
        """Whether two models are compared."""
        return bool(self.baseline is not None or self.baseline_server or self.baseline_serve_options)

    @property
    def baseline_name(self) -> str:
        """The baseline's name; where only its server or options differ, the model's."""
        return (self.baseline or "").partition(":")[0] or self.model

    @property
    def baseline_version(self) -> str:
        """The baseline's version; empty: the highest."""
        if self.baseline is None:
            return self.version
        return self.baseline.partition(":")[2]


@click.command("evaluate", context_settings={"max_content_width": 110})
@click.argument("data", metavar="DATA", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--models",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Model repository. `vistazo serve` is started on it, on loopback, and ended afterwards, in place of "
    "--server.",
)
@click.option(
    "--serve-option",
    "serve_options",
    multiple=True,
    metavar="OPTION",
    help="With --models: passed to `vistazo serve`, such as --serve-option=--device=cpu.",
)
@click.option("--model", default="", help="Name of the model.  [default: the only one served]")
@click.option("--version", "version", default="", help="Version of the model.  [default: the highest ready]")
@click.option(
    "--baseline",
    metavar="MODEL[:VERSION]",
    help="A second model, compared on the same images: int8 against fp32, version 2 against 1.",
)
@click.option(
    "--baseline-server",
    metavar="HOST:PORT",
    help="Where the baseline is, when it is elsewhere; --baseline is then the same model unless it is named.",
)
@click.option(
    "--baseline-serve-option",
    "baseline_serve_options",
    multiple=True,
    metavar="OPTION",
    help="With --models: the baseline has a `vistazo serve` of its own with this option.",
)
@click.option(
    "--mapping",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV, JSON or TOML from the names of the images' classes to labels or class indices of the model.",
)
@click.option("--recursive", is_flag=True, help="Take images at any depth below the folder of a class.")
@click.option(
    "--threshold",
    type=_share,
    default=0.5,
    show_default=True,
    metavar="0..1",
    help="Multi-label models: from which probability on a label counts as said.",
)
@click.option(
    "--report", type=_file, metavar="FILE", help="Write a page with plots and images: one HTML file."
)
@click.option("--output", type=_file, metavar="FILE", help="Write everything as one JSON object.")
@click.option("--json", "as_json_lines", is_flag=True, help="Print the JSON object in place of the tables.")
@click.option(
    "--min-top1",
    type=_share,
    metavar="0..1",
    help="Exit with status 1 when top-1 is lower, or when more than --max-failed images failed.",
)
@click.option(
    "--min-map",
    type=_share,
    metavar="0..1",
    help="The same for the mean average precision of a multi-label model.",
)
@click.option(
    "--max-failed",
    type=click.IntRange(min=0),
    metavar="COUNT",
    help="Exit with status 1 when more images failed.  [default: 0 with --min-top1 or --min-map]",
)
@server_options
def evaluate_command(
    *,
    report: Path | None,
    output: Path | None,
    as_json_lines: bool,
    open_client: Callable[..., Client],
    **options: object,
) -> None:
    """Measure how good a model's answers are on images whose labels are known.

    DATA is a folder with a subfolder for each class, or a CSV file of path and label; paths in it are
    relative to the file, and several labels of one image have | between them. The names are matched with
    the model's labels by text, by class index, by ImageNet synset or by --mapping, and refused where any does
    not fit.

    Images that are not answered are counted apart; every other figure is of those that are.

    The exit status is 0, also for a bad model, unless --min-top1, --min-map or --max-failed is not kept: 1.
    It is 1, too, when there is nothing to measure: no server, no such model, names that do not fit. 2 is a
    wrong command line.
    """
    choices = Choices(**options)  # type: ignore[arg-type]
    _check(choices)
    for package in _NEEDED:
        if find_spec(package) is None:
            # Now, not after the minutes that the images take.
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    dataset = read_dataset(choices.data, recursive=choices.recursive)
    outcome = _evaluate(choices, dataset, open_client)
    _tell_on_stderr(outcome)
    result = as_json(outcome)
    if output is not None:
        _write(output, json.dumps(result, allow_nan=False, ensure_ascii=False, indent=1) + "\n")
    if report is not None:
        # matplotlib and the images: not for those who want no page.
        from vistazo_evaluate.report.page import make_page  # noqa: PLC0415

        _write(report, make_page(outcome))
    if as_json_lines:
        click.echo(json.dumps(result, allow_nan=False))
    else:
        print_outcome(outcome)
        for what, path in (("report", report), ("JSON", output)):
            if path is not None:
                click.echo(f"{what}: {path}")
    if not outcome.passed:
        raise click.exceptions.Exit(1)


def _check(choices: Choices) -> None:
    server_given = click.get_current_context().get_parameter_source("server")
    if choices.models is not None and server_given is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("expected --models or --server, got both")
    if choices.models is None and (choices.serve_options or choices.baseline_serve_options):
        raise click.UsageError("--serve-option and --baseline-serve-option go with --models")
    if choices.baseline_server and choices.baseline_serve_options:
        raise click.UsageError("expected --baseline-server or --baseline-serve-option, got both")
    if choices.baseline is not None and not choices.baseline.partition(":")[0]:
        raise click.UsageError("--baseline: expected MODEL or MODEL:VERSION")
    if choices.min_top1 is not None and choices.min_map is not None:
        raise click.UsageError(
            "--min-top1 is for classes that exclude each other, --min-map for others: got both"
        )


def _evaluate(choices: Choices, dataset: Dataset, open_client: Callable[..., Client]) -> Outcome:
    mapping = None if choices.mapping is None else read_mapping(choices.mapping)
    baseline = None
    with ExitStack() as stack:
        client, other = _clients(choices, stack, open_client)
        model = choose_model(client.models(), choices.model, choices.version)
        _check_gates(choices, model)
        matching = match(model, dataset, mapping, who=model.name)
        if choices.has_baseline:
            second = choose_model(
                other.models(),
                choices.baseline_name or model.name,
                choices.baseline_version,
                option="--baseline",
            )
            if other is client and (second.name, second.version) == (model.name, model.version):
                raise EvaluationError(
                    f"--baseline: {model.name} version {model.version} would be compared with itself"
                )
            # Before the first image is sent, too.
            second_matching = match(second, dataset, mapping, who=f"--baseline: {second.name}")
        with _progress(model.name, len(dataset.paths)) as advance:
            judged = judge(client, model, dataset, matching, threshold=choices.threshold, progress=advance)
        if choices.has_baseline:
            with _progress(second.name, len(dataset.paths)) as advance:
                baseline = judge(
                    other, second, dataset, second_matching, threshold=choices.threshold, progress=advance
                )
    return Outcome(
        dataset,
        judged,
        None if baseline is None else compare_models(judged, baseline, dataset),
        _gates(choices, judged),
        " ".join(["vistazo", *sys.argv[1:]]),
    )


def _clients(choices: Choices, stack: ExitStack, open_client: Callable[..., Client]) -> tuple[Client, Client]:
    """Return the client of the model and that of the baseline, which may be the same."""
    names = [choices.model]
    if choices.has_baseline and not choices.baseline_serve_options and not choices.baseline_server:
        names.append(choices.baseline_name)
    client = _client(choices, stack, open_client, choices.serve_options, names)
    if choices.baseline_server:
        try:
            return client, stack.enter_context(open_client(choices.baseline_server))
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--baseline-server") from error
    if choices.baseline_serve_options:
        other = _client(choices, stack, open_client, choices.baseline_serve_options, [choices.baseline_name])
        return client, other
    return client, client


def _client(
    choices: Choices,
    stack: ExitStack,
    open_client: Callable[..., Client],
    serve_options: tuple[str, ...],
    names: list[str],
) -> Client:
    if choices.models is None:
        return stack.enter_context(open_client())
    only = sorted(set(names)) if all(names) else ()
    for name in only:
        if not (choices.models / name).is_dir():
            raise EvaluationError(f"{choices.models} has no model {name!r}")
    # Any version may be asked for; the highest alone is served else.
    versions = choices.version or ":" in (choices.baseline or "")
    policy = ("--version-policy", "all") if versions else ()
    server = stack.enter_context(serving(choices.models, (*policy, *serve_options), only=only))
    parameters = click.get_current_context().params
    return stack.enter_context(
        Client(server.address, timeout=parameters["timeout"], retries=parameters["retries"])
    )


def _check_gates(choices: Choices, model: ModelInfo) -> None:
    """Refuse a bound that the model cannot have, before any image is sent."""
    independent = model.scores in INDEPENDENT
    if choices.min_map is not None and not independent:
        raise click.UsageError(f"--min-map: the classes of {model.name} exclude each other; use --min-top1")
    # A binary model, of two classes, may have a top-1: its answers tell.
    if choices.min_top1 is not None and independent and len(model.labels) != 2:
        raise click.UsageError(f"--min-top1: {model.name} is multi-label and has no top-1; use --min-map")


def _gates(choices: Choices, judged: Judged) -> tuple[Gate, ...]:
    gates = []
    metrics = judged.metrics
    if choices.min_top1 is not None:
        if isinstance(metrics, MultiLabelMetrics):
            raise EvaluationError(
                f"--min-top1: {judged.model.name} is multi-label and has no top-1; use --min-map"
            )
        gates.append(_bound("--min-top1", choices.min_top1, metrics.top1.value))
    if choices.min_map is not None:
        if not isinstance(metrics, MultiLabelMetrics):
            raise EvaluationError(f"--min-map: {judged.model.name} is binary; use --min-top1")
        gates.append(_bound("--min-map", choices.min_map, metrics.mean_average_precision))
    most = choices.max_failed if choices.max_failed is not None else 0 if gates else None
    if most is not None:
        failed = len(judged.answers.failures)
        gates.append(Gate("--max-failed", most, failed, failed <= most))
    return tuple(gates)


def _bound(option: str, wanted: float, measured: float | None) -> Gate:
    value = 0.0 if measured is None else measured
    return Gate(option, wanted, value, value >= wanted)


def _tell_on_stderr(outcome: Outcome) -> None:
    for name in outcome.untrained:
        click.secho(
            f"Warning: the weights of {name} are UNTRAINED: these answers mean nothing, and no figure does.",
            fg="red",
            bold=True,
            err=True,
        )
    judged = [outcome.judged, *([outcome.compared.baseline] if outcome.compared else [])]
    for each in judged:
        failures = each.answers.failures
        for failure in failures[:_MOST_FAILURES]:
            click.echo(f"Not answered by {each.model.name}: {failure.image}: {failure.reason}", err=True)
        if len(failures) > _MOST_FAILURES:
            more = len(failures) - _MOST_FAILURES
            click.echo(f"Not answered by {each.model.name}: {more} more; --output lists them all", err=True)
    for gate in outcome.gates:
        if not gate.passed:
            click.secho(
                f"Error: {gate.option} {gate.wanted:g} is not kept: {gate.measured:.6g}", fg="red", err=True
            )


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text)
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be written ({error.strerror})") from error


@contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Give a function that moves a bar on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"Evaluating {name}", total=total)
        yield lambda images: progress.advance(task, images)
