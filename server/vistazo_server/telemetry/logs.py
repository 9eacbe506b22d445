"""Structured logs on stderr: an event name and fields, as JSON or for people.

What callers send ends up in fields. No control character of theirs reaches the output: a line of the log
is one line, and no terminal takes orders from it. No local variables are drawn: they hold tokens and images.
Nor can they fill the disk: lines of one kind are limited in rate, and what was left out is counted.
"""

import logging
import re
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, Literal, TextIO

import grpc.aio
import structlog

from vistazo_server.telemetry import request_id, tracing

# C0 and C1 controls, line and paragraph separators, and what turns the direction of text.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")

# Lines of one kind at once, and a second. Whoever tries something out finds a line for each failure; four
# callers that failed as fast as they could wrote 1.8 MB in 5 s, and now 17 kB, and 50 MB in a day.
BURST_LINES: Final = 50
LINES_PER_SECOND: Final = 2.0
# The same with a traceback, of some 5 kB each: 45 MB in a day.
BURST_TRACEBACKS: Final = 10
TRACEBACKS_PER_SECOND: Final = 0.1

_LIMITS: Final = {False: (BURST_LINES, LINES_PER_SECOND), True: (BURST_TRACEBACKS, TRACEBACKS_PER_SECOND)}
"""By whether a line has a traceback."""

# What an operator changes is told each time: it takes longer than its line, and who starts a thousand models
# looks for a thousand lines.
UNLIMITED: Final = frozenset({"model_ready", "model_unloaded"})

# Kinds that are told apart; the others share one limit. The server has fewer than half as many events.
MOST_KINDS: Final = 128
OTHER_KINDS: Final = "other"


class _Bucket:
    """What may still be written of one kind: a token bucket."""

    __slots__ = ("_burst", "_per_second", "_since", "_tokens")

    def __init__(self, burst: float, per_second: float, now: float) -> None:
        self._burst = self._tokens = burst
        self._per_second = per_second
        self._since = now

    def take(self, now: float) -> bool:
        """Return whether one more may be written now."""
        self._tokens = min(self._tokens + (now - self._since) * self._per_second, self._burst)
        self._since = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class RateLimit:
    """Lets some lines of each kind through, and has the next one tell how many were left out.

    A kind is an event's name, or a logger's of the standard library. Any thread may ask. `clock` returns
    seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # The collector of garbage may come at any time, and what it finds may write a line of its own.
        self._lock = threading.RLock()
        self._buckets: dict[tuple[str, bool], _Bucket] = {}
        self._left_out: Counter[str] = Counter()

    def admit(self, kind: str, *, has_traceback: bool) -> dict[str, Any] | None:
        """Return the fields that a line gets, None when it is left out.

        `suppressed`: how many of its kind were left out since a line last told it; `suppressed_others`: how
        many of other kinds, by kind. So the next line of any kind tells it, and a kind may fall silent.
        """
        with self._lock:
            if (kind, has_traceback) not in self._buckets and len(self._buckets) >= MOST_KINDS:
                kind = OTHER_KINDS
            if not self._bucket(kind, has_traceback=has_traceback).take(self._clock()):
                self._left_out[kind] += 1
                return None
            if not self._left_out:
                return {}
            fields: dict[str, Any] = {}
            if own := self._left_out.pop(kind, 0):
                fields["suppressed"] = own
            if self._left_out:
                fields["suppressed_others"] = dict(self._left_out)
                self._left_out.clear()
            return fields

    def _bucket(self, kind: str, *, has_traceback: bool) -> _Bucket:
        key = (kind, has_traceback)
        if key not in self._buckets:
            self._buckets[key] = _Bucket(*_LIMITS[has_traceback], self._clock())
        return self._buckets[key]

    def process(
        self, _logger: object, method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        """Limit structlog's lines, as one of its processors."""
        if method == "debug" or event.get("event") in UNLIMITED:  # an operator asked for each of them
            return event
        fields = self.admit(str(event.get("event")), has_traceback=bool(event.get("exc_info")))
        if fields is None:
            raise structlog.DropEvent
        event.update(fields)
        return event

    def filter(self, record: logging.LogRecord) -> bool:
        """Limit the standard library's lines, as a filter of a handler; `_tell` then adds the fields."""
        fields = self.admit(record.name, has_traceback=bool(record.exc_info))
        record.rate_limit_fields = fields
        return fields is not None


def _tell(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Add to a line of the standard library what RateLimit has for it."""
    event.update(getattr(event["_record"], "rate_limit_fields", None) or {})
    return event


def _is_of_the_server(record: logging.LogRecord) -> bool:
    """Return False for what grpc logs as an error when a caller is gone.

    It is silent about a write to a caller that has gone, unless that fails in the moment before it knows:
    then it draws a traceback of its InternalError. The RPC is counted as CANCELLED in both cases.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, grpc.aio.InternalError)


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
    limit = RateLimit()
    structlog.configure(
        processors=[limit.process, *processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # What grpc and others say through the standard library, in the same shape.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_tell, *processors],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    handler.addFilter(_is_of_the_server)
    handler.addFilter(limit.filter)
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
