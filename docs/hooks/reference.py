"""The hook that writes the reference: `<!-- generated: WHAT -->` in a page becomes what the source says.

The rest of the marker's line is for who reads the page in the repository, where nothing is generated.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final

import vistazo_client
from benchmarks_page import benchmarks_page
from metrics_page import metrics_page
from proto_page import proto_page
from settings_page import settings_page
from statuses_page import statuses_page
from vistazo_client.cli.plugins import installed_plugins

_MARKER: Final = re.compile(r"^<!-- generated: (?P<what>\w+)(?: (?P<of>\w+))? -->.*$", re.MULTILINE)


def cli_page() -> str:
    """Return the directives with which mkdocs-click writes `vistazo` and each of its commands."""
    blocks = [_command("vistazo_client.cli", "main", "vistazo", depth=1)]
    # mkdocs-click finds a group's own commands, and not those that join it as plug-ins.
    blocks += [
        _command(plugin.module, plugin.attr, f"vistazo {plugin.name}", depth=2)
        for plugin in sorted(installed_plugins(), key=lambda plugin: plugin.name)
    ]
    return "\n\n".join(blocks)


def _command(module: str, command: str, name: str, *, depth: int) -> str:
    options = {"module": module, "command": command, "prog_name": name, "depth": depth, "style": "plain"}
    return "\n".join(["::: mkdocs-click", *(f"    :{option}: {value}" for option, value in options.items())])


def python_page() -> str:
    """Return the directives with which mkdocstrings writes each public name of the client."""
    names = sorted(name for name in vistazo_client.__all__ if not name.startswith("__"))
    # The two clients first: they are what a reader looks for.
    names.sort(key=lambda name: ("Client", "AsyncClient").index(name) if name.endswith("Client") else 2)
    return "\n\n".join(f"::: vistazo_client.{name}" for name in names)


WRITERS: Final[Mapping[str, Callable[..., str]]] = {
    "benchmarks": benchmarks_page,
    "cli": cli_page,
    "metrics": metrics_page,
    "proto": proto_page,
    "python": python_page,
    "settings": settings_page,
    "statuses": statuses_page,
}


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put what is generated in the place of its marker."""

    def write(marker: re.Match[str]) -> str:
        return WRITERS[marker["what"]](*filter(None, [marker["of"]]))

    return _MARKER.sub(write, markdown)
