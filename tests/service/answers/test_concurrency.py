"""Many callers at once, some of whom go away: all others get their own answers and nothing is left over."""

import asyncio
import math
import random
from dataclasses import dataclass

import numpy as np
import pytest

from support.images import file
from support.serving import PATIENCE_SECONDS, Serving, encoded, raw, serving, until
from support.tiny import LABELS, plain, tiny_model, write_model
from vistazo_proto import classification_pb2 as pb

REQUESTS = 1000
CALLERS = 32
CANCELLED_SHARE = 0.05


@dataclass(frozen=True)
class Ask:
    """One request, and the colours that its answer has to tell."""

    colours: list[tuple[int, int]]
    """For each image, how much more red and more green than blue it is; all of all requests differ."""
    encoded: bool
    cancel_after: float | None
    """Seconds; None: never."""

    def images(self) -> list[pb.Image]:
        return [self._image(red, green) for red, green in self.colours]

    def _image(self, red: int, green: int) -> pb.Image:
        if not self.encoded:
            return raw(plain(100 + red, 100 + green, 100))
        return encoded(file(plain(100 + red, 100 + green, 100, height=31, width=47)))


def asks(chance: random.Random) -> list[Ask]:
    """Return REQUESTS requests of one to three images of distinct colours, some to be cancelled."""
    colours = [(red, green) for red in range(-50, 50) for green in range(-50, 50)]
    chance.shuffle(colours)
    cancelled = set(chance.sample(range(REQUESTS), int(REQUESTS * CANCELLED_SHARE)))
    return [
        Ask(
            colours=[colours.pop() for _ in range(chance.choice((1, 1, 1, 2, 3)))],
            encoded=chance.random() < 0.7,
            # From before it is sent to after it is answered.
            cancel_after=chance.uniform(0, 0.05) if number in cancelled else None,
        )
        for number in range(REQUESTS)
    ]


def colours_told(response: pb.ClassifyResponse) -> list[tuple[int, int]]:
    """Return the colours that the probabilities of a response can only have come from."""
    told = []
    for result in response.results:
        by_index = {one.index: math.log(one.probability) for one in result.predictions.predictions}
        told.append((round(10 * (by_index[0] - by_index[2])), round(10 * (by_index[1] - by_index[2]))))
    return told


async def call(server: Serving, ask: Ask) -> bool:
    """Make the request; return whether it was answered, and fail when with another's answer."""
    request = pb.ClassifyRequest(images=ask.images(), top_k=len(LABELS))
    answer = server.stub.Classify(request, timeout=PATIENCE_SECONDS)
    if ask.cancel_after is not None:
        await asyncio.sleep(ask.cancel_after)
        answer.cancel()
    try:
        response = await answer
    except asyncio.CancelledError:
        assert ask.cancel_after is not None
        return False
    assert colours_told(response) == ask.colours
    return True


@pytest.mark.parametrize("seed", [1, 2])
async def test_of_a_thousand_requests_with_some_cancelled_every_other_gets_its_own_answer(tmp_path, seed):
    chance = random.Random(seed)
    # Slow enough that requests wait for one another, so that cancelled ones are met at every stage.
    write_model(tmp_path, model=tiny_model(cost=5))
    remaining = iter(asks(chance))
    answered = cancelled = 0

    async def caller() -> None:
        nonlocal answered, cancelled
        for ask in remaining:
            if await call(server, ask):
                answered += 1
            else:
                cancelled += 1

    async with serving(tmp_path, max_batch_size=4, preprocess_threads=2) as server:
        pool = server.server.repository.lease("tiny").loaded.classifier._images._pool
        await server.classify(raw(plain(1, 2, 3)))
        tasks = len(asyncio.all_tasks())
        await asyncio.gather(*(caller() for _ in range(CALLERS)))

        assert answered + cancelled == REQUESTS
        assert answered >= REQUESTS * (1 - CANCELLED_SHARE)
        await until(lambda: server.queued() == 0, what="the queue is empty")
        await until(lambda: server.in_flight() == 0, what="no request is in flight")
        await until(lambda: pool.pending == 0, what="no image is being decoded")
        await until(lambda: len(asyncio.all_tasks()) <= tasks, what="all tasks have ended")
        counted = server.outcomes()
        assert set(counted) <= {"ok", "cancelled"}
        # One more than counted here: the first. A caller may have gone when its answer was ready already.
        assert answered + 1 <= counted["ok"] <= answered + cancelled + 1
        assert (await server.classify(raw(plain(200, 1, 1)))).results[0].predictions.predictions[
            0
        ].label == "red"


async def test_streams_of_many_callers_do_not_mix(models):
    async def caller(number: int) -> None:
        colours = {str(at): (number, at - 32) for at in range(64)}
        requests = [
            pb.ClassifyStreamRequest(
                id=name,
                request=pb.ClassifyRequest(images=[raw(plain(100 + red, 100 + green, 100))], top_k=3),
            )
            for name, (red, green) in colours.items()
        ]
        stream = server.stub.ClassifyStream(iter(requests), timeout=PATIENCE_SECONDS)
        told = {answer.id: colours_told(answer.response) async for answer in stream}
        assert told == {name: [colour] for name, colour in colours.items()}

    async with serving(models) as server:
        await asyncio.gather(*(caller(number) for number in range(16)))
        await until(lambda: server.in_flight() == 0)


async def test_bad_images_of_some_callers_never_touch_the_answers_of_others(models):
    async def caller(number: int) -> None:
        for at in range(20):
            colour = (number, at)
            good = raw(plain(100 + colour[0], 100 + colour[1], 100))
            bad = encoded(np.random.default_rng(number * 20 + at).bytes(200))
            response = await server.classify(bad, good, bad, top_k=3)
            assert [result.WhichOneof("outcome") for result in response.results] == [
                "error",
                "predictions",
                "error",
            ]
            assert colours_told(pb.ClassifyResponse(results=[response.results[1]])) == [colour]

    async with serving(models) as server:
        await asyncio.gather(*(caller(number) for number in range(16)))
