"""The options that every command which talks to a server shares."""

import functools
from collections.abc import Callable
from typing import Any

import click

from vistazo_client._channel import DEFAULT_ADDRESS, DEFAULT_TIMEOUT_SECONDS, check_address
from vistazo_client._core import Preprocess
from vistazo_client._retry import DEFAULT_RETRIES
from vistazo_client.client import Client
from vistazo_client.credentials import TLS

_Command = Callable[..., None]


def _address(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    try:
        return check_address(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _file(flag: str, name: str, text: str) -> Callable[[_Command], _Command]:
    # The server's own settings are in the environment of the container that checks its health, so a
    # client's have names of their own.
    return click.option(
        flag,
        name,
        metavar="FILE",
        envvar=f"VISTAZO_CLIENT_{name.upper()}",
        show_envvar=True,
        help=text,
    )


_OPTIONS: tuple[Callable[[_Command], _Command], ...] = (
    click.option(
        "--server",
        metavar="HOST:PORT[,…]",
        default=DEFAULT_ADDRESS,
        envvar="VISTAZO_SERVER",
        show_default=True,
        show_envvar=True,
        callback=_address,
        help="Where the server is; several that serve the same, with commas between them.",
    ),
    click.option(
        "--timeout",
        metavar="SECONDS",
        type=click.FloatRange(min=0, min_open=True),
        default=DEFAULT_TIMEOUT_SECONDS,
        show_default=True,
        help="Longest that any one request may take, retries included.",
    ),
    click.option(
        "--retries",
        metavar="COUNT",
        type=click.IntRange(min=0),
        default=DEFAULT_RETRIES,
        show_default=True,
        help="How often to try again when the server refuses for load or cannot be reached.",
    ),
    click.option(
        "--tls",
        "tls",
        is_flag=True,
        envvar="VISTAZO_CLIENT_TLS",
        show_envvar=True,
        help="Speak TLS, and trust the public authorities unless --tls-ca says otherwise.",
    ),
    _file("--tls-ca", "tls_ca", "PEM file with the authorities to trust; implies --tls."),
    _file("--tls-certificate", "tls_certificate", "PEM file with this client's certificate, for mTLS."),
    _file("--tls-key", "tls_key", "PEM file with the key of that certificate."),
    click.option(
        "--tls-server-name",
        metavar="NAME",
        default="",
        envvar="VISTAZO_CLIENT_TLS_SERVER_NAME",
        show_envvar=True,
        help="Name to look for in the server's certificate.  [default: the host of --server]",
    ),
    _file(
        "--token-file", "token_file", "File with the bearer token to send; VISTAZO_CLIENT_TOKEN holds one."
    ),
    click.option(
        "--allow-insecure-token",
        is_flag=True,
        help="Send the token without TLS to other machines too, where anyone on the way can read it.",
    ),
    click.option("--token", default="", envvar="VISTAZO_CLIENT_TOKEN", hidden=True),
)


def server_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say where the server is and how to talk to it.

    The command gets `open_client`, which makes the Client, of the server at --server or at an address given.
    """

    @functools.wraps(function)
    def command(
        *,
        server: str,
        timeout: float,
        retries: int,
        tls: bool,
        tls_ca: str | None,
        tls_certificate: str | None,
        tls_key: str | None,
        tls_server_name: str,
        token_file: str | None,
        token: str,
        allow_insecure_token: bool,
        **others: Any,  # noqa: ANN401  what the command itself declares
    ) -> None:
        secure = TLS(tls_ca, tls_certificate, tls_key, tls_server_name)

        def open_client(address: str = server, *, preprocess: Preprocess = "server") -> Client:
            try:
                return Client(
                    address,
                    timeout=timeout,
                    retries=retries,
                    tls=secure if tls or secure != TLS() else False,
                    token=token,
                    token_file=token_file,
                    allow_insecure_token=allow_insecure_token,
                    preprocess=preprocess,
                )
            except ValueError as error:
                raise click.UsageError(str(error)) from error

        function(open_client=open_client, **others)

    decorated: Callable[..., None] = command
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON Lines: one object a line.")
