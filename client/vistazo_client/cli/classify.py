"""`vistazo classify`: images in, a table or JSON Lines out."""

import dataclasses
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from vistazo_client._images import image_name
from vistazo_client.cli.folders import images_in
from vistazo_client.cli.options import json_option, server_options
from vistazo_client.cli.tables import bar, print_table
from vistazo_client.client import Client
from vistazo_client.errors import InvalidImageError, LocalPreprocessingWarning, VistazoError
from vistazo_client.results import Classification

# Fewer are done before a progress bar could be read.
PROGRESS_FROM_IMAGES = 20


@click.command("classify")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE|FOLDER...")
@click.option("--model", default="", help="Name of the model.  [default: the only one served]")
@click.option("--version", "version", default="", help="Version of the model.  [default: the highest ready]")
@click.option("--top", type=click.IntRange(min=1), help="Predictions for each image.  [default: 5]")
@click.option(
    "--min-probability",
    metavar="0..1",
    type=click.FloatRange(0, 1),
    help="Leave out predictions below it, so that an image may have none.  [default: 0]",
)
@click.option(
    "--local",
    is_flag=True,
    help="Prepare the images here, as the server would, and send the pixels alone. Takes the extra `local`.",
)
@click.option("--recursive", is_flag=True, help="Of a FOLDER, take the images at any depth below it.")
@json_option
@server_options
def classify_command(
    *,
    images: tuple[str, ...],
    model: str,
    version: str,
    top: int | None,
    min_probability: float | None,
    local: bool,
    recursive: bool,
    as_json: bool,
    open_client: Callable[..., Client],
) -> None:
    """Classify images.

    A FOLDER stands for the images directly in it: .jpg, .jpeg, .png, .webp and .bmp. Hidden files, such as
    those that macOS names ._cat.jpg, and pipes are skipped.

    The exit status is 0 when every image was answered, and 1 when any was not; why is said on standard
    error, one line each.
    """
    paths, errors = _find_images(images, recursive=recursive)
    report = _Report(as_json=as_json)
    for path, error in errors:
        report.add(path, Classification(error=error))
    with _warnings_told(), _open(open_client, local=local) as client:
        results = client.classify_iter(
            paths, model=model, version=version, top_k=top, min_probability=min_probability
        )
        try:
            for path, result in zip(paths, _progress(results, len(paths), as_json=as_json), strict=True):
                if report.answered == 0 and result.error is None:
                    _warn_if_untrained(client, result)
                report.add(path, result)
        except VistazoError:
            # The server failed half way; what it answered is worth having.
            report.finish()
            raise
    report.finish()
    if report.failed:
        raise click.exceptions.Exit(1)


def _open(open_client: Callable[..., Client], *, local: bool) -> Client:
    try:
        return open_client(preprocess="local" if local else "server")
    except ImportError as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def _warnings_told() -> Iterator[None]:
    """Print a LocalPreprocessingWarning as any other line of the command's."""

    def tell(message: Warning | str, *_others: object, **_named: object) -> None:
        click.echo(f"Warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", LocalPreprocessingWarning)
        # What Python prints of a warning names a file and a line of this package.
        warnings.showwarning = tell
        yield


class _Report:
    """Prints results: failures at once to standard error, JSON as it comes, the table at the end."""

    def __init__(self, *, as_json: bool) -> None:
        self.answered = 0
        self.failed = 0
        self._as_json = as_json
        self._rows: list[tuple[str, Classification]] = []

    def add(self, path: Path, result: Classification) -> None:
        name = image_name(path)
        if result.error is None:
            self.answered += 1
        else:
            self.failed += 1
            click.echo(f"Error: {result.error}", err=True)
        if self._as_json:
            click.echo(json.dumps(_as_json(name, result)))
        elif result.error is None:
            self._rows.append((name, result))

    def finish(self) -> None:
        if self._rows:
            print_table(_table(self._rows))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False  # why it cannot be looked at is said when it is read


def _find_images(
    arguments: Sequence[str], *, recursive: bool
) -> tuple[list[Path], list[tuple[Path, InvalidImageError]]]:
    """Return the image files that the arguments stand for, and what is wrong with the folders among them."""
    paths: list[Path] = []
    errors: list[tuple[Path, InvalidImageError]] = []
    for argument in arguments:
        path = Path(argument)
        if not _is_folder(path):
            paths.append(path)
            continue
        try:
            paths += images_in(path, recursive=recursive)
        except InvalidImageError as error:
            errors.append((path, error))
    return paths, errors


def _progress(results: Iterator[Classification], total: int, *, as_json: bool) -> Iterable[Classification]:
    if total < PROGRESS_FROM_IMAGES or not sys.stderr.isatty():
        return results
    if as_json and sys.stdout.isatty():
        return results  # each line would begin behind the bar
    console = Console(stderr=True)
    return track(results, "Classifying", total=total, console=console, transient=True)


def _warn_if_untrained(client: Client, result: Classification) -> None:
    """Say so on standard error when the model's weights are random: its answers look like any others."""
    try:
        untrained = client.model(result.model, result.version).untrained
    except VistazoError:
        # The answer is there; not knowing this is no reason to lose it.
        return
    if untrained:
        click.secho(
            f"Warning: the weights of {result.model} are untrained: these answers mean nothing.",
            fg="red",
            bold=True,
            err=True,
        )


def _table(rows: Sequence[tuple[str, Classification]]) -> Table:
    models = sorted({f"{result.model} version {result.version}" for _, result in rows})
    table = Table(title=Text(", ".join(models)), title_justify="left")
    table.add_column("image", overflow="fold")
    table.add_column("rank", justify="right")
    table.add_column("label", overflow="fold")
    table.add_column("probability", justify="right")
    table.add_column("")
    for name, result in rows:
        if not result.predictions:
            table.add_row(Text(name), "", Text("(none is probable enough)"), end_section=True)
        for rank, prediction in enumerate(result.predictions, start=1):
            table.add_row(
                Text(name if rank == 1 else ""),
                str(rank),
                Text(prediction.label),
                f"{prediction.probability:.1%}",
                bar(prediction.probability),
                end_section=rank == len(result.predictions),
            )
    return table


def _as_json(name: str, result: Classification) -> dict[str, object]:
    error = result.error
    return {
        "image": name,
        "model": result.model,
        "version": result.version,
        "predictions": [dataclasses.asdict(prediction) for prediction in result.predictions],
        "batch_size": result.batch_size,
        "timing": dataclasses.asdict(result.timing),
        "error": None if error is None else {"code": error.code.name, "message": str(error)},
    }
