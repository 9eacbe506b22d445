"""What stops an evaluation."""

from vistazo_client.cli.errors import CommandError


class EvaluationError(CommandError):
    """The evaluation cannot go on, or its result would mean nothing; the message says why."""
