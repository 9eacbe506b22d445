"""What stops a benchmark."""

from vistazo_client.cli.errors import CommandError


class BenchError(CommandError):
    """The benchmark cannot go on, or its result would mean nothing; the message is one line."""
