"""The command group, and how commands of other packages join it.

`vistazo serve` and `vistazo export` live in packages of their own, found through the entry-point group
`vistazo.commands`, and need extras that a client does not. The extra is named in the entry point:
`serve = vistazo_server.cli:serve_command [server]`.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

from vistazo_client._images import printable_path
from vistazo_client.cli.streams import output_failed, prepare_streams
from vistazo_client.cli.tables import print_anything
from vistazo_client.errors import VistazoError

PLUGIN_GROUP = "vistazo.commands"

# What shells report for a command that Ctrl-C ended: 128 + SIGINT.
INTERRUPTED_EXIT_STATUS = 130

_OWN_PACKAGES = "vistazo_"


def installed_plugins() -> Iterable[EntryPoint]:
    """Return the commands that the installed distributions offer."""
    return entry_points(group=PLUGIN_GROUP)


class VistazoGroup(click.Group):
    """A group whose commands may live in packages that are not fully installed.

    A command that lacks a third-party package is listed all the same, and says what to install when it
    is called. Errors of the client, missing packages and Ctrl-C end any command without a traceback.
    """

    find_plugins: Callable[[], Iterable[EntryPoint]] = staticmethod(installed_plugins)
    """Where plug-in commands come from; tests bring their own."""

    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  click's own signature
        """Run the command line, on an output of any encoding."""
        prepare_streams()
        print_anything()
        if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
            kwargs.setdefault("color", False)
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            # Of what is printed before a command begins, such as its help.
            if not kwargs.get("standalone_mode", True):
                raise
            click.echo(f"Error: {output_failed(error)}", err=True)
            sys.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, sorted."""
        return sorted({*super().list_commands(ctx), *self._plugins()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of this name; a stand-in where its packages are not installed."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            # Without a look at what is installed, which takes longer than the whole health check.
            return command
        plugin = self._plugins().get(cmd_name)
        if plugin is None:
            return None
        try:
            loaded = plugin.load()
        except ModuleNotFoundError as error:
            return _stand_in(cmd_name, plugin, _missing_package(error))
        if not isinstance(loaded, click.Command):
            raise TypeError(f"{plugin.value} is not a click command")
        return loaded

    def invoke(self, ctx: click.Context) -> object:
        """Run the command, and turn what may go wrong in any of them into one line and a status."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # what fails is to be said here
        except VistazoError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            raise _from_the_system(error) from error
        except ModuleNotFoundError as error:
            plugin = self._plugins().get(ctx.invoked_subcommand or "")
            if plugin is None:
                raise
            raise click.ClickException(_what_to_install(plugin, _missing_package(error))) from error
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED_EXIT_STATUS)
        return result

    def _plugins(self) -> dict[str, EntryPoint]:
        return {plugin.name: plugin for plugin in self.find_plugins()}


def _from_the_system(error: OSError) -> Exception:
    """Return the exception that ends a command for want of what the operating system would not give."""
    if error.errno == errno.EPIPE and error.filename is None:
        return error  # click ends quietly: whoever read has enough
    if error.filename is None:
        return click.ClickException(output_failed(error))
    return click.ClickException(f"{printable_path(error.filename)}: {error.strerror}")


def _missing_package(error: ModuleNotFoundError) -> str:
    """Return the name of the third-party package that is missing; any other module is a bug, and raised."""
    package = (error.name or "").partition(".")[0]
    if not package or package.startswith(_OWN_PACKAGES) or package in sys.stdlib_module_names:
        raise error
    return package


def _pip_install(plugin: EntryPoint) -> str:
    extras = f"[{','.join(plugin.extras)}]" if plugin.extras else ""
    return f"pip install 'vistazo{extras}'"


def _what_to_install(plugin: EntryPoint, package: str) -> str:
    return (
        f"`vistazo {plugin.name}` needs the Python package {package}, which is not installed: "
        f"{_pip_install(plugin)}"
    )


def _stand_in(name: str, plugin: EntryPoint, package: str) -> click.Command:
    """Return a command that takes any arguments and says what to install."""

    def complain(arguments: tuple[str, ...]) -> None:
        del arguments
        raise click.ClickException(_what_to_install(plugin, package))

    return click.Command(
        name,
        callback=complain,
        params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)],
        context_settings={"ignore_unknown_options": True},
        # `vistazo serve --help` cannot show options that are not there; it says what to install, too.
        add_help_option=False,
        short_help=f"needs: {_pip_install(plugin)}",
    )
