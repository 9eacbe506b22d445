"""What reaches the log: one line for each event, nothing that a terminal would obey, nothing secret."""

import json
import logging
import sys

import pytest
import structlog

from vistazo_server import logs, request_id

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
    import re

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
