"""What reaches the log: one line for each event, nothing that a terminal would obey, nothing secret."""

import json
import logging
import re
import sys
import threading

import pytest
import structlog
from grpc._cython.cygrpc import ExecuteBatchError

from vistazo_server.telemetry import logs, request_id

EVIL = 'x\n2026-01-01 [info] forged\r\x1b[2J\x1b]0;title\x07\x9b31m\u2028\u202e"\x00end'


@pytest.fixture(autouse=True)
def _logging_as_before():
    root = logging.getLogger()
    before, handlers, level = structlog.get_config(), root.handlers[:], root.level
    yield
    structlog.configure(**before)
    root.handlers[:], _ = handlers, root.setLevel(level)


class Terminal:
    """A stream that says it is a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


@pytest.fixture(params=["json", "console", "auto"])
def said(request, monkeypatch):
    """Set the real log up, and return what was written since."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.configure(level="debug", log_format=request.param)
    return lambda: stream.text


def uncoloured(text: str) -> str:
    """Return a line of the log without the colours that the renderer itself draws: only those."""
    return re.sub(r"\x1b\[\d{1,2}m", "", text)


def test_what_callers_send_cannot_forge_a_line_or_talk_to_the_terminal(said):
    log = structlog.get_logger("test")
    log.info("request_failed", reason=EVIL, model=EVIL, many=[EVIL], nested={"name": EVIL})
    text = uncoloured(said())

    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert text[:-1].isprintable()
    assert "forged" in text


def test_an_exception_s_message_cannot_either(said):
    try:
        {}[EVIL]
    except KeyError as error:
        error.add_note(EVIL)  # drawn as it is, where a KeyError draws its key with repr
        structlog.get_logger("test").error("request_crashed", exc_info=error)
    lines = uncoloured(said()).splitlines()

    assert "request_crashed" in lines[0]
    assert all(line.isprintable() for line in lines)
    # What is not a line of its own is indented.
    assert all(line.startswith("    ") for line in lines[1:])


def test_what_libraries_log_cannot_either(said):
    logging.getLogger("grpc").warning("peer said %s", EVIL)
    text = uncoloured(said())

    assert text.count("\n") == 1
    assert text[:-1].isprintable()


def test_a_traceback_shows_no_local_variables(said):
    def authenticate(secret):
        raise RuntimeError(len(secret))

    try:
        authenticate("hunter2" * 3)  # not in the source line, which a traceback quotes
    except RuntimeError as error:
        structlog.get_logger("test").error("request_crashed", exc_info=error)

    assert "RuntimeError: 21" in said()
    assert "hunter2hunter2" not in said()


def test_lines_of_a_request_carry_its_id(said):
    log = structlog.get_logger("test")
    log.info("outside")
    request_id.begin([("x-request-id", "order-66")])
    log.info("inside")
    request_id._current.set("")
    outside, inside = uncoloured(said()).splitlines()

    assert "order-66" not in outside
    assert "order-66" in inside
    if inside.startswith("{"):
        assert json.loads(inside)["request_id"] == "order-66"
        assert "request_id" not in json.loads(outside)


# Lines of one kind are limited in rate


class Clock:
    """Time that stands still until it is told to go on."""

    now = 1000.0

    def __call__(self):
        return self.now


def admitted(limit, kind="request_failed", *, lines=1, has_traceback=False):
    """Try so many lines, and return the fields of those that were let through."""
    tried = [limit.admit(kind, has_traceback=has_traceback) for _ in range(lines)]
    return [fields for fields in tried if fields is not None]


def test_the_first_lines_of_a_kind_are_all_written_and_then_so_many_a_second():
    clock = Clock()
    limit = logs.RateLimit(clock)

    assert admitted(limit, lines=1000) == [{}] * logs.BURST_LINES
    clock.now += 0.99 / logs.LINES_PER_SECOND
    assert admitted(limit, lines=1000) == []
    clock.now += 0.02 / logs.LINES_PER_SECOND
    assert admitted(limit) == [{"suppressed": 2000 - logs.BURST_LINES}]
    assert admitted(limit, lines=1000) == []
    clock.now += 10
    assert len(admitted(limit, lines=1000)) == 10 * logs.LINES_PER_SECOND
    clock.now += 1e6  # what was not used is not saved up
    assert len(admitted(limit, lines=1000)) == logs.BURST_LINES


def test_lines_with_a_traceback_are_limited_more_tightly():
    clock = Clock()
    limit = logs.RateLimit(clock)

    assert len(admitted(limit, lines=1000, has_traceback=True)) == logs.BURST_TRACEBACKS
    clock.now += 60
    assert len(admitted(limit, lines=1000, has_traceback=True)) == 60 * logs.TRACEBACKS_PER_SECOND
    assert logs.BURST_TRACEBACKS < logs.BURST_LINES
    assert logs.TRACEBACKS_PER_SECOND < logs.LINES_PER_SECOND


def test_a_flood_of_one_kind_hides_no_other():
    limit = logs.RateLimit(Clock())
    admitted(limit, "request_failed", lines=1000)

    assert len(admitted(limit, "model_failed", lines=5)) == 5


def test_every_model_of_a_large_repository_has_its_line():
    limit = logs.RateLimit(Clock())
    lines = [limit.process(None, "info", {"event": "model_ready", "model": str(n)}) for n in range(1000)]

    assert [line["model"] for line in lines] == [str(n) for n in range(1000)]


def test_what_was_left_out_of_a_kind_that_fell_silent_is_told_by_the_next_line_of_any():
    limit = logs.RateLimit(Clock())
    admitted(limit, "request_failed", lines=logs.BURST_LINES + 7)
    other = admitted(limit, "tokens_unusable", lines=logs.BURST_LINES + 2)
    last = admitted(limit, "draining", lines=2)

    assert other == [{"suppressed_others": {"request_failed": 7}}, *[{}] * (logs.BURST_LINES - 1)]
    assert last == [{"suppressed_others": {"tokens_unusable": 2}}, {}]


def test_no_line_is_lost_or_counted_twice():
    clock = Clock()
    limit = logs.RateLimit(clock)
    kinds = ["a", "b", "c"]
    tried = dict.fromkeys(kinds, 0)
    written = dict.fromkeys([*kinds, "stopped"], 0)
    counted = dict.fromkeys(kinds, 0)

    def take(kind, *, has_traceback=False):
        fields = limit.admit(kind, has_traceback=has_traceback)
        if fields is None:
            return
        written[kind] += 1
        if "suppressed" in fields:
            counted[kind] += fields["suppressed"]
        for other, number in fields.get("suppressed_others", {}).items():
            assert other != kind
            counted[other] += number

    for turn in range(20_000):
        kind = kinds[turn * turn % 7 % 3]
        tried[kind] += 1
        take(kind, has_traceback=turn % 5 == 0)
        clock.now += 0.001 * (turn % 11)
    take("stopped")

    assert all(counted.values())
    assert {kind: written[kind] + counted[kind] for kind in kinds} == tried


def test_kinds_without_end_take_no_memory_without_end():
    limit = logs.RateLimit(Clock())
    for number in range(100_000):
        limit.admit(f"kind {number}", has_traceback=number % 2 == 0)

    assert len(limit._buckets) <= logs.MOST_KINDS + 2
    # The many share one limit, and the few that were there before have their own.
    (told,) = admitted(limit, "kind 1")
    assert told["suppressed_others"].keys() == {logs.OTHER_KINDS}
    assert told["suppressed_others"][logs.OTHER_KINDS] > 99_000


def test_many_threads_get_as_many_lines_as_one():
    limit = logs.RateLimit(Clock())
    written = []

    def log():
        written.extend(admitted(limit, lines=2000))

    threads = [threading.Thread(target=log) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(written) == logs.BURST_LINES
    assert limit._left_out["request_failed"] == 8 * 2000 - logs.BURST_LINES


def test_refusals_are_limited_and_the_lines_that_an_operator_asked_for_are_not(said):
    log = structlog.get_logger("test")
    for number in range(300):
        log.debug("request", number=number)
        log.info("request_failed", number=number)
    log.warning("model_failed")
    text = uncoloured(said())

    assert len(re.findall(r"\brequest\b(?!_)", text)) == 300
    assert text.count("request_failed") == logs.BURST_LINES + 1  # and once in what was left out
    last = text.splitlines()[-1]
    assert "model_failed" in last
    assert str(300 - logs.BURST_LINES) in last
    if last.startswith("{"):
        assert json.loads(last)["suppressed_others"] == {"request_failed": 300 - logs.BURST_LINES}


def test_tracebacks_are_limited_and_the_next_line_says_so(said):
    log = structlog.get_logger("test")
    for _ in range(100):
        try:
            {}["nothing"]
        except KeyError:
            log.exception("batch_failed")
    log.error("batch_failed")
    text = uncoloured(said())

    assert text.count("KeyError: 'nothing'") == logs.BURST_TRACEBACKS
    assert str(100 - logs.BURST_TRACEBACKS) in text.splitlines()[-1]


def test_libraries_are_limited_by_their_loggers_name(said):
    for _ in range(300):
        logging.getLogger("grpc._cython").warning("a handshake failed")
    logging.getLogger("asyncio").error("a callback failed")
    lines = uncoloured(said()).splitlines()

    assert len(lines) == logs.BURST_LINES + 1
    assert "a callback failed" in lines[-1]
    assert str(300 - logs.BURST_LINES) in lines[-1]


def test_a_write_that_fails_because_its_caller_is_gone_is_no_error_of_the_servers(said):
    """grpc logs it as one when the write fails in the moment before it knows that the caller is gone."""
    grpc_log = logging.getLogger("grpc._cython.cygrpc")
    for failure in (ExecuteBatchError("Failed execute_batch"), ValueError("a fault")):
        try:
            raise failure
        except (ExecuteBatchError, ValueError):
            grpc_log.exception("%s raised by servicer method", type(failure).__name__)
    text = uncoloured(said())

    assert "ExecuteBatchError" not in text
    assert "ValueError: a fault" in text


def test_a_line_that_is_written_while_another_is_being_admitted_blocks_nobody():
    """The collector of garbage may come at any time, and what it finds may write a line."""

    class Collected(Clock):
        inner = True

        def __call__(self):
            if self.inner:
                self.inner = False
                assert limit.admit("inner", has_traceback=False) == {}
            return self.now

    limit = logs.RateLimit(Collected())

    assert limit.admit("outer", has_traceback=False) == {}
