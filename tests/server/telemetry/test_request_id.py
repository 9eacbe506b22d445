"""The id of a request: the caller's when it is sane."""

import asyncio

import pytest

from vistazo_server.telemetry import request_id


async def begun(metadata) -> str:
    async def request() -> str:
        request_id.begin(metadata)
        return request_id.current()

    return await asyncio.create_task(request())


@pytest.mark.parametrize("sent", ["7", "order-66", "a" * 128, "0af7651916cd43dd", "job:1/2+3=4@x"])
async def test_a_sane_id_of_the_caller_is_kept(sent):
    assert await begun([("user-agent", "x"), ("x-request-id", sent)]) == sent


@pytest.mark.parametrize("sent", ["", "a" * 129, "a b", "a\nb", "\x1b[31m", "ü", "<script>", "a,b", b"bytes"])
async def test_another_gets_a_new_one(sent):
    made = await begun([("x-request-id", sent)])

    assert made != sent
    assert request_id._SANE.fullmatch(made)


async def test_of_several_the_first_sane_one_counts():
    sent = [("x-request-id", value) for value in ("a b", "first", "second")]

    assert await begun(sent) == "first"


async def test_new_ids_differ_and_stay_in_their_request():
    made = {await begun(None) for _ in range(1000)}

    assert len(made) == 1000
    assert request_id.current() == ""
