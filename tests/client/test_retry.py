"""What is tried again, when, and how often."""

import threading
import time
from itertools import count

import grpc
import pytest

from vistazo_client import (
    DeadlineExceededError,
    OverloadedError,
    RequestCancelledError,
    UnavailableError,
    VistazoError,
)
from vistazo_client._retry import DEFAULT_RETRIES, FIRST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS, Attempts
from vistazo_client.errors import EXCEPTION_FOR

Code = grpc.StatusCode


def refusing(times, code=Code.RESOURCE_EXHAUSTED, pushback_ms: object = 20):
    """Return a script that refuses the first requests, with a pushback unless it is None."""
    asked = count(1)

    def script(request, context):
        if next(asked) <= times:
            if pushback_ms is not None:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", str(pushback_ms)),))
            context.abort(code, "full")

    return script


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def attempts(retries=4, timeout=10.0, uniform=lambda low, high: (low + high) / 2, clock=None):
    return Attempts(retries=retries, timeout=timeout, clock=clock or Clock(), uniform=uniform)


def test_a_request_that_is_refused_twice_is_answered_the_third_time(client, server):
    server.service.script = refusing(2, pushback_ms=150)
    started = time.monotonic()

    assert client.classify(b"a cat").top.label == "a cat"
    assert len(server.service.requests) == 3
    assert time.monotonic() - started >= 0.3


def test_a_large_request_is_sent_again_too(client, server):
    server.service.script = refusing(2)
    image = b"x" * 2_000_000

    assert client.classify(image).error is None
    assert [len(request.images[0].encoded) for request in server.service.requests] == [2_000_000] * 3


@pytest.mark.parametrize("call", ["models", "model", "health"])
def test_every_other_call_is_tried_again_too(open_client, nobody, starting_server, call):
    with open_client(nobody, timeout=20, retries=1000) as client:
        asked = threading.Event()
        answers = []

        def ask():
            asked.set()
            answers.append(client.model("lenet") if call == "model" else getattr(client, call)())

        asking = threading.Thread(target=ask)
        asking.start()
        asked.wait()
        starting_server().set_serving("", serving=True)
        asking.join(20)

    assert len(answers) == 1


def test_each_request_of_a_list_is_tried_again_by_itself(client, server):
    server.service.script = refusing(3)
    results = client.classify([b"image %d" % number for number in range(100)])

    assert [result.top.label for result in results] == [f"image {number}" for number in range(100)]


def test_no_more_attempts_than_allowed(open_client, server):
    server.service.script = refusing(100, pushback_ms=1)
    with open_client(server.address, retries=2) as client, pytest.raises(OverloadedError, match="full"):
        client.classify(b"a cat")

    assert len(server.service.requests) == 3


def test_retries_can_be_turned_off(open_client, server):
    server.service.script = refusing(100, pushback_ms=1)
    with open_client(server.address, retries=0) as client:
        with pytest.raises(OverloadedError):
            client.classify(b"a cat")
        server.service.script = refusing(100, code=Code.UNAVAILABLE, pushback_ms=None)
        with pytest.raises(UnavailableError):
            client.classify(b"a cat")

    assert len(server.service.requests) == 2


def test_a_pushback_past_the_deadline_is_not_waited_for(client, server):
    server.service.script = refusing(100, pushback_ms=60_000)
    started = time.monotonic()
    with pytest.raises(OverloadedError) as refusal:
        client.classify(b"a cat", timeout=30)

    assert refusal.value.retry_after == 60
    assert time.monotonic() - started < 5
    assert len(server.service.requests) == 1


def test_all_attempts_share_one_deadline(client, server):
    left = []

    def refuse(request, context):
        left.append(context.time_remaining())
        if len(left) == 2:
            server.stopping.wait(30)
        context.set_trailing_metadata((("grpc-retry-pushback-ms", "300"),))
        context.abort(Code.RESOURCE_EXHAUSTED, "full")

    server.service.script = refuse
    with pytest.raises(DeadlineExceededError, match=r"within 0\.8 s; before that: full$"):
        client.classify(b"a cat", timeout=0.8)

    assert left[1] < 0.6


@pytest.mark.parametrize("pushback", [-1, "never"])
def test_a_server_that_forbids_a_retry_is_obeyed(client, server, pushback):
    server.service.script = refusing(100, code=Code.UNAVAILABLE, pushback_ms=pushback)
    with pytest.raises(UnavailableError):
        client.classify(b"a cat")

    assert len(server.service.requests) == 1


def test_closing_ends_the_wait_for_a_retry(server):
    from vistazo_client import Client

    server.service.script = refusing(100, pushback_ms=20_000)
    client = Client(server.address, timeout=60)
    raised = []

    def ask():
        try:
            client.classify(b"a cat")
        except RequestCancelledError as error:
            raised.append(error)

    caller = threading.Thread(target=ask)
    caller.start()
    while not server.service.answered_images:
        server.stopping.wait(0.01)
    client.close()
    caller.join(5)

    assert len(raised) == 1


def test_a_negative_number_of_retries_is_refused(open_client):
    with pytest.raises(ValueError, match="expected 0 retries or more, got -1"):
        open_client(retries=-1)


@pytest.mark.parametrize(
    "code", sorted(EXCEPTION_FOR, key=lambda code: code.name), ids=lambda code: code.name
)
def test_without_a_pushback_only_a_server_that_went_away_is_tried_again(code):
    went_away = code in {Code.UNAVAILABLE, Code.CANCELLED}

    assert (attempts().delay_after(EXCEPTION_FOR[code]("why", code=code)) is not None) is went_away


def test_the_backoff_grows_to_its_limit():
    attempt = attempts(retries=20, timeout=1000)
    delays = [attempt.delay_after(UnavailableError("why")) for _ in range(20)]

    assert delays[0] == FIRST_BACKOFF_SECONDS
    assert delays == sorted(delays)
    assert delays[1] == 2 * FIRST_BACKOFF_SECONDS
    assert delays[-1] == LAST_BACKOFF_SECONDS
    assert attempt.delay_after(UnavailableError("why")) is None


def test_callers_who_were_refused_together_come_back_apart_and_never_early():
    refusal = OverloadedError("full", retry_after=2.0)
    delays = {Attempts(retries=1, timeout=10).delay_after(refusal) for _ in range(50)}

    assert len(delays) > 40
    assert min(delays) >= 2.0
    assert max(delays) <= 2.4


def test_no_attempt_starts_at_or_after_the_deadline():
    clock = Clock()
    attempt = attempts(timeout=1.0, clock=clock, uniform=lambda low, high: low)
    refusal = OverloadedError("full", retry_after=0.5)

    assert attempt.delay_after(refusal) == 0.5
    clock.now += 0.5
    assert attempt.delay_after(refusal) is None
    assert attempt.seconds_left == 0.5
    clock.now += 5
    assert attempt.seconds_left > 0


def test_the_default_is_bounded():
    attempt = attempts(retries=DEFAULT_RETRIES, timeout=1e9)
    tried = 0
    while attempt.delay_after(UnavailableError("why")) is not None:
        tried += 1

    assert tried == DEFAULT_RETRIES
    assert issubclass(UnavailableError, VistazoError)
