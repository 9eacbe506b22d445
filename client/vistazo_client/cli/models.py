"""`vistazo models` and `vistazo health`: what a server has, and how it is."""

import dataclasses
import json
from collections.abc import Callable, Sequence

import click
from rich.table import Table
from rich.text import Text

from vistazo_client.cli.options import json_option, server_options
from vistazo_client.cli.tables import print_line, print_table
from vistazo_client.client import Client
from vistazo_client.results import ModelInfo, ModelState, ScoreKind

_STATE_STYLE = {ModelState.READY: "green", ModelState.FAILED: "bold red"}


@click.command("models")
@json_option
@click.option("--verbose", "-v", is_flag=True, help="Add the measured latency of each batch size.")
@server_options
def models_command(*, as_json: bool, verbose: bool, open_client: Callable[[], Client]) -> None:
    """List the models of a server."""
    with open_client() as client:
        models = client.models()
    if as_json:
        for model in models:
            click.echo(json.dumps(dataclasses.asdict(model)))
        return
    if not models:
        click.echo(f"The server at {client.address} has no models.")
        return
    print_table(_models_table(models))
    for model in models:
        if model.jpeg_decoding == "reduced":
            print_line(
                f"{model.name} version {model.version} decodes large JPEGs at a fraction of their size"
            )
        if model.one_by_one:
            print_line(
                f"{model.name} version {model.version} runs its samples one by one: {model.one_by_one}"
            )
    if verbose:
        print_table(_latency_table(models))


def _models_table(models: Sequence[ModelInfo]) -> Table:
    table = Table(
        "model",
        "version",
        "state",
        "weights",
        "precision",
        "input",
        "classes",
        "scores",
        "max batch",
        "device",
    )
    for model in models:
        state = f"{model.state}: {model.reason}" if model.reason else str(model.state)
        shape = f"{model.input_height}×{model.input_width}×{model.input_channels}"
        if not model.input_height:
            # Served over Open Inference only; before it is loaded, nobody knows.
            shape = "tensors" if model.max_batch_size else ""
        table.add_row(
            Text(model.name),
            Text(model.version),
            Text(state, style=_STATE_STYLE.get(model.state, "yellow")),
            # The answers of random weights look like any others.
            Text(model.weights, style="bold red" if model.untrained else ""),
            Text(model.precision),
            shape,
            str(len(model.labels) or ""),
            "" if model.scores is ScoreKind.UNKNOWN else model.scores.lower().replace("_", " "),
            str(model.max_batch_size or ""),
            Text(model.device),
        )
    return table


def _latency_table(models: Sequence[ModelInfo]) -> Table:
    table = Table("model", "version", "batch size", "milliseconds", "images per second")
    for model in models:
        for latency in model.latencies:
            rate = f"{latency.batch_size / latency.seconds:.0f}" if latency.seconds > 0 else ""
            table.add_row(
                Text(model.name),
                Text(model.version),
                str(latency.batch_size),
                f"{latency.seconds * 1000:.2f}",
                rate,
            )
    return table


@click.command("health")
@click.argument("model", default="")
@click.option(
    "--service", metavar="NAME", default="", help="The same as MODEL: any name that the server knows."
)
@click.option(
    "--wait",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="Wait up to this long for it to serve, also for a server that is not there yet.",
)
@server_options
def health_command(
    *, model: str, service: str, wait: float | None, open_client: Callable[[], Client]
) -> None:
    """Say whether a server, or one MODEL of it, is serving.

    Prints SERVING or NOT_SERVING; the exit status is 0 only when it is serving. Fit for a container's
    health check: it needs nothing but the client.
    """
    if model and service:
        raise click.UsageError("expected MODEL or --service, got both")
    model = model or service
    with open_client() as client:
        if wait is not None:
            client.wait_until_ready(model, timeout=wait)
        serving = wait is not None or client.health(model)
    click.echo("SERVING" if serving else "NOT_SERVING")
    if not serving:
        raise click.exceptions.Exit(1)
