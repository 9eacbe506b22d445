"""What ends a command that does more than one call."""

from vistazo_client.errors import VistazoError


class CommandError(VistazoError):
    """A command cannot go on, or its result would mean nothing; the message says why."""
