"""`vistazo serve`: the settings as options, the signals, the exit status."""

import asyncio
import gc
import os
import signal
import sys
import warnings
from typing import Any, Final, Literal, get_args, get_origin

import click
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from vistazo_server.settings import Settings

OTHER_FILES: Final = 128
"""Beside a file for each connection: models, metrics, the log, grpc's own."""

SWITCH_INTERVAL_SECONDS: Final = 0.0005

# Objects that are made before the collector of reference cycles looks for garbage among them. A request
# leaves no cycles behind; with Python's 700, the search took a tenth of the time of a small network's.
GC_THRESHOLD: Final = 20_000


def _option(name: str, field: FieldInfo) -> click.Option:
    """Return the command line's form of a setting. Values are checked by Settings, not here."""
    flag = "--" + name.replace("_", "-")
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    default = "none" if field.default == "" else field.default
    help_text = f"{field.description}  [env: VISTAZO_{name.upper()}; default: {default}]"
    help_text = " ".join(help_text.split())
    if field.annotation in (bool, bool | None):
        return click.Option([f"{flag}/--no-{flag[2:]}"], default=None, help=help_text)
    return click.Option(
        [flag],
        default=None,
        help=help_text,
        type=click.Choice(choices) if choices else str,
        metavar=None if choices else _metavar(field),
    )


def _metavar(field: FieldInfo) -> str:
    kinds: dict[Any, str] = {int: "INTEGER", float: "NUMBER", str: "TEXT"}
    return kinds.get(field.annotation, "PATH")


@click.command(
    "serve",
    params=[_option(name, field) for name, field in Settings.model_fields.items()],
    context_settings={"max_content_width": 110},
)
@click.pass_context
def serve_command(context: click.Context, /, **options: object) -> None:
    """Serve a model repository over gRPC until SIGTERM or SIGINT.

    Every option can also be given as an environment variable; an option wins over its variable.
    """
    try:
        settings = Settings(**{name: value for name, value in options.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        raise click.UsageError(_explain(error), context) from None
    # Here, not at the top: --help must answer without ONNX Runtime, and fast.
    from vistazo_server.errors import StartupError  # noqa: PLC0415
    from vistazo_server.telemetry import logs  # noqa: PLC0415

    logs.configure(level=settings.log_level, log_format=settings.log_format)
    # What Pillow finds odd about a stranger's file, such as corrupt EXIF, is not the operator's business.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        _run(settings)
    except StartupError as error:
        raise click.ClickException(str(error)) from error


def _run(settings: Settings) -> None:
    from vistazo_server.engine.memory import limit_arenas  # noqa: PLC0415

    limit_arenas()
    from vistazo_server.server import serve  # noqa: PLC0415

    # The engine's thread needs the interpreter's lock to hand over its rows, and a busy event loop keeps it
    # for the switch interval: 5 ms by default, a third of a run of ResNet18.
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    # What the imports left will stay; there is no need to go through it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)

    _allow_files(settings.max_connections)

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _stop, stop, number)
        await serve(settings, stop)

    if sys.platform == "win32":
        asyncio.run(main())
        return
    import uvloop  # noqa: PLC0415

    uvloop.run(main())


def _allow_files(connections: int) -> None:
    """Raise the process's limit of open files to what `connections` need; 0: any number."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415

    import structlog  # noqa: PLC0415

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + OTHER_FILES if connections else hard
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or (needed != unlimited and soft >= needed):
        return
    allowed = needed if hard == unlimited else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        structlog.get_logger(__name__).warning(
            "few_open_files", limit=allowed, max_connections=connections, to_do="raise ulimit -Hn"
        )


def _stop(stop: asyncio.Event, number: signal.Signals) -> None:
    """Ask for the drain; asked once more, end at once, with the status that a shell gives to a signal."""
    if not stop.is_set():
        stop.set()
        return
    import structlog  # noqa: PLC0415

    structlog.get_logger(__name__).warning("stopped_at_once", signal=number.name, meaning="a second signal")
    sys.stderr.flush()
    os._exit(128 + number)


def _explain(error: ValidationError) -> str:
    """Return pydantic's findings as one line each, in the words of the command line."""
    lines = []
    for finding in error.errors():
        message = finding["msg"].removeprefix("Value error, ")
        if not finding["loc"]:  # of several settings together; the message names them
            lines.append(message)
            continue
        name = str(finding["loc"][0])
        lines.append(
            f"--{name.replace('_', '-')} (VISTAZO_{name.upper()}): {message}, got {finding['input']!r}"
        )
    return "\n".join(lines)
