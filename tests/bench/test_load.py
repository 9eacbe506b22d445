"""The load generators, against a scripted server. Nothing here asserts on speed."""

import asyncio
import time

import grpc
import numpy as np
import pytest

from bench.scripts import aborting, after
from vistazo_bench.errors import BenchError
from vistazo_bench.measuring.load import (
    MAX_REQUESTS_PER_SEGMENT,
    ClosedLoop,
    OpenLoop,
    Target,
    closed_loop,
    open_loop,
    poisson_arrivals,
)
from vistazo_bench.measuring.records import NO_PUSHBACK, summarize_closed, summarize_open

pytestmark = pytest.mark.serial


def test_poisson_arrivals_have_the_rate_and_the_spread_of_a_poisson_process():
    arrivals = poisson_arrivals(200.0, 100.0, seed=1)
    gaps = np.diff(arrivals)
    # Five standard errors: sqrt(20,000) arrivals, and as much for the gaps.
    assert len(arrivals) == pytest.approx(20_000, abs=5 * 20_000**0.5)
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.04)
    assert gaps.std() == pytest.approx(1 / 200, rel=0.04)
    assert (gaps > 0).all()
    assert arrivals[-1] < 100.0


def test_arrivals_are_the_same_for_the_same_seed_only():
    assert (poisson_arrivals(50.0, 10.0, seed=3) == poisson_arrivals(50.0, 10.0, seed=3)).all()
    assert (
        len(poisson_arrivals(50.0, 10.0, seed=3)) != len(poisson_arrivals(50.0, 10.0, seed=4))
        or not (poisson_arrivals(50.0, 10.0, seed=3) == poisson_arrivals(50.0, 10.0, seed=4)).all()
    )


def test_a_segment_that_could_not_be_recorded_is_refused():
    with pytest.raises(BenchError, match="more than"):
        poisson_arrivals(MAX_REQUESTS_PER_SEGMENT, 1.1, seed=0)


async def test_a_closed_loop_never_has_more_in_flight_than_its_callers(scripted):
    async def behaviour(number, context):
        while number < 5 and server.most_running < 5:  # until all callers are there
            await asyncio.sleep(0.001)
        return b""

    async with scripted(behaviour) as server:
        result = await closed_loop(ClosedLoop(server.target(), 5, 60.0, max_requests=200))
    assert server.most_running == 5
    assert len(server.requests) == len(result.latency) == 200
    assert set(server.requests) == {b"a", b"b"}


async def test_a_closed_loop_keeps_some_answers_with_their_request(scripted):
    async with scripted(after(0)) as server:
        result = await closed_loop(ClosedLoop(server.target(b"x", b"y"), 1, 60.0, max_requests=64))
    assert len(result.samples) == 4
    # One caller: the n-th answer carries the number n and belongs to request n mod 2.
    assert all(int(response) % 2 == request for request, response in result.samples)


async def test_a_refused_caller_waits_as_long_as_the_pushback_says(scripted):
    async with scripted(aborting(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback_ms=30)) as server:
        result = await closed_loop(ClosedLoop(server.target(), 1, 60.0, max_requests=4))
    assert (np.diff(result.arrived) >= 0.03).all()
    assert summarize_closed(result, images_per_request=1).errors == {"RESOURCE_EXHAUSTED": 4}


async def test_an_open_loop_counts_refusals_and_their_pushback(scripted):
    async def behaviour(number, context):
        if number % 2:
            trailers = (("grpc-retry-pushback-ms", "40"),) if number % 4 == 1 else ()
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", trailers)
        return b"answer"

    async with scripted(behaviour) as server:
        result = await open_loop(OpenLoop(server.target(), 400.0, 0.5, deadline_seconds=20.0))
    total = len(poisson_arrivals(400.0, 0.5, seed=0))
    summary = summarize_open(result, images_per_request=1, deadline=20.0)
    assert summary.requests == total
    assert summary.refused == total // 2
    assert summary.answered == total - total // 2
    assert summary.pushback_share == pytest.approx(0.5, abs=0.05)
    assert set(result.pushback_ms.tolist()) == {NO_PUSHBACK, 40}


async def test_an_open_loop_sends_its_deadline_and_reports_who_missed_it(scripted):
    remaining = []

    async def behaviour(number, context):
        remaining.append(context.time_remaining())
        await asyncio.sleep(30)

    async with scripted(behaviour) as server:
        result = await open_loop(OpenLoop(server.target(), 50.0, 0.4, deadline_seconds=0.2))
    summary = summarize_open(result, images_per_request=1, deadline=0.2)
    assert summary.errors == {"DEADLINE_EXCEEDED": len(poisson_arrivals(50.0, 0.4, seed=0))}
    assert summary.goodput == summary.in_time_share == 0
    assert 0 < max(remaining) <= 0.25  # the wire rounds it


async def test_a_slow_answer_does_not_delay_the_next_arrival(scripted):
    release = asyncio.Event()

    async def behaviour(number, context):
        await release.wait()
        return b""

    async with scripted(behaviour) as server:
        target = server.target()
        running = asyncio.create_task(open_loop(OpenLoop(target, 100.0, 0.3, deadline_seconds=30.0)))
        expected = len(poisson_arrivals(100.0, 0.3, seed=0))
        started = time.monotonic()
        while len(server.requests) < expected and time.monotonic() - started < 20:
            await asyncio.sleep(0.01)
        assert server.running == expected
        release.set()
        assert len((await running).latency) == expected


async def test_arrivals_beyond_the_bound_of_outstanding_requests_are_dropped_and_counted(scripted):
    release = asyncio.Event()

    async def behaviour(number, context):
        await release.wait()
        return b""

    async with scripted(behaviour) as server:
        load = OpenLoop(server.target(), 100.0, 0.3, deadline_seconds=1.0, max_outstanding=3)
        result = await open_loop(load)
        release.set()
    assert server.most_running == 3
    assert len(result.latency) + result.dropped == len(poisson_arrivals(100.0, 0.3, seed=0))
    assert result.dropped > 0


async def test_latency_counts_from_when_a_request_was_due(scripted):
    async with scripted(after(0)) as server:
        result = await open_loop(OpenLoop(server.target(), 200.0, 0.2))
    assert (result.latency >= result.lag).all()
    assert (result.lag >= 0).all()


async def test_nobody_there_is_said_so(monkeypatch):
    monkeypatch.setattr("vistazo_bench.measuring.load.CONNECT_SECONDS", 0.2)
    with pytest.raises(BenchError, match=r"no server at 127\.0\.0\.1:1 within"):
        await closed_loop(ClosedLoop(Target("127.0.0.1:1", (b"",)), 1, 1.0))
