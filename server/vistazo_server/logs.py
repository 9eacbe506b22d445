"""Structured logs on stderr: an event name and fields, as JSON or for people.

What callers send ends up in fields. No control character of theirs reaches the output: a line of the log
is one line, and no terminal takes orders from it. No local variables are drawn: they hold tokens and images.
"""

import logging
import re
import sys
import traceback
from typing import Literal, TextIO

import structlog

from vistazo_server import request_id, tracing

# C0 and C1 controls, line and paragraph separators, and what turns the direction of text.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def configure(*, level: str, log_format: Literal["auto", "json", "console"]) -> None:
    """Set the process's logging up; called once, by the command, never by a library module."""
    people = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_draw_traceback)
        if people
        else structlog.processors.JSONRenderer()
    )
    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_ids,
    ]
    if people:
        processors.append(_escape)  # JSON escapes by itself
    else:
        processors.append(structlog.processors.format_exc_info)  # the console renderer does it by itself
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # What grpc and others say through the standard library, in the same shape.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=processors,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def _add_ids(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Name the request under way, its caller and its trace, looked up only when something is logged."""
    if current := request_id.current():
        event.setdefault("request_id", current)
    if caller := request_id.caller():
        event.setdefault("caller", caller)
    if span := tracing.current():
        event.setdefault("trace_id", span.trace_id)
    return event


def _escape(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for key, value in event.items():
        if isinstance(value, str) and _UNSAFE.search(value):  # others are drawn with repr, which escapes
            event[key] = escaped(value)
    return event


def escaped(text: str) -> str:
    """Return `text` with what a terminal or a reader of lines could take for more than text escaped."""
    return _UNSAFE.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def _draw_traceback(out: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    # Indented, so that no line of an exception's message can pass for a line of the log.
    lines = "".join(traceback.format_exception(*exc_info)).splitlines()
    out.writelines(f"\n    {escaped(line)}" for line in lines)
