"""The options that every command which talks to a server shares."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from vistazo_client._channel import DEFAULT_ADDRESS, DEFAULT_TIMEOUT_SECONDS, check_address

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _address(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    try:
        return check_address(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def server_options(function: _Function) -> _Function:
    """Add `--server` and `--timeout`."""
    server = click.option(
        "--server",
        metavar="HOST:PORT",
        default=DEFAULT_ADDRESS,
        envvar="VISTAZO_SERVER",
        show_default=True,
        show_envvar=True,
        callback=_address,
        help="Where the server is.",
    )
    timeout = click.option(
        "--timeout",
        metavar="SECONDS",
        type=click.FloatRange(min=0, min_open=True),
        default=DEFAULT_TIMEOUT_SECONDS,
        show_default=True,
        help="Longest that any one request may take.",
    )
    return server(timeout(function))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON Lines: one object a line.")
