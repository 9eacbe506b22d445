"""The page of statuses, from the errors of the server and of the client."""

import inspect
from collections.abc import Iterator

from prose import inline, row, table
from vistazo_client import EXCEPTION_FOR, InvalidImageError
from vistazo_server import errors


def serving_errors(
    base: type[errors.ServingError] = errors.ServingError,
) -> Iterator[type[errors.ServingError]]:
    """Yield every kind of ServingError, each before those below it."""
    for kind in base.__subclasses__():
        yield kind
        yield from serving_errors(kind)


def statuses_page() -> str:
    """Return a table: the error, its status, what it means, and the client's exception for it."""
    return (
        "## Errors of the server\n\n"
        + table("Error", "Status", "Meaning", "Python client")
        + "".join(
            row(
                f"`{kind.__name__}`",
                f"`{kind.code.name}`",
                inline(inspect.getdoc(kind) or ""),
                _exception(kind),
            )
            for kind in serving_errors()
        )
    )


def _exception(kind: type[errors.ServingError]) -> str:
    exception = InvalidImageError if kind.reason else EXCEPTION_FOR[kind.code]
    return f"[`{exception.__name__}`](python.md#vistazo_client.{exception.__name__})"
