"""The `vistazo` command.

plugins.py   the group: its own commands, and those that other packages add when installed
options.py   the options that all commands share
streams.py   standard streams that are closed, or full
tables.py    how tables and lines come out on any terminal
folders.py   which files of a folder are images
serving.py   `vistazo serve`, started for a command and ended after it; worker.py holds it in a process
classify.py  `vistazo classify`
models.py    `vistazo models`, `vistazo health`
"""

import click

from vistazo_client import __version__
from vistazo_client.cli.classify import classify_command
from vistazo_client.cli.models import health_command, models_command
from vistazo_client.cli.plugins import VistazoGroup


@click.group(cls=VistazoGroup)
@click.version_option(__version__, prog_name="vistazo")
def main() -> None:
    """Image classification over gRPC.

    Classify images with a running server; with the extras installed, export models and serve them.
    """


main.add_command(classify_command)
main.add_command(models_command)
main.add_command(health_command)
