"""What stops a benchmark."""

from vistazo_client.errors import VistazoError


class BenchError(VistazoError):
    """The benchmark cannot go on, or its result would mean nothing; the message is one line."""
