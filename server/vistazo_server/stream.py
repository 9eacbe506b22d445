"""The requests of one stream: worked on together, and no more of them read than there is room for."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, Final, TypeVar

from vistazo_server.errors import let_go

Request = TypeVar("Request")
Response = TypeVar("Response")

REQUESTS_IN_FLIGHT: Final = 64
"""Requests of one stream that are worked on at once; more are not read, which slows their sender down."""


async def answers(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Coroutine[Any, Any, Response]],
    *,
    in_order: bool,
) -> AsyncGenerator[Response, None]:
    """Yield what `answer` returns for each request, in the order of the requests or as the answers come.

    What `answer` raises, or the reading of `requests`, ends the stream.
    """
    answered: asyncio.Queue[asyncio.Task[Response] | None] = asyncio.Queue()
    room = asyncio.Semaphore(REQUESTS_IN_FLIGHT)
    tasks: set[asyncio.Task[Response]] = set()

    async def read() -> None:
        try:
            async for request in requests:
                # Given back when the answer is sent: a caller that does not read is not read from.
                await room.acquire()
                task = asyncio.create_task(_forgetting(answer, request))
                tasks.add(task)
                if in_order:
                    answered.put_nowait(task)
                else:
                    task.add_done_callback(answered.put_nowait)
                del request  # while the next is waited for, and when the stream is cut
        finally:
            if tasks and not in_order:
                await asyncio.wait(tasks)
            answered.put_nowait(None)

    # No task group: one around a `yield` that is left by a caller who went would raise a group of errors.
    reader = asyncio.create_task(read())
    try:
        while (task := await answered.get()) is not None:
            response = await task
            tasks.discard(task)
            yield response
            room.release()
        await reader  # raises what ended the reading
    finally:
        under_way = (reader, *tasks)
        for one in under_way:
            one.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def _forgetting(
    answer: Callable[[Request], Coroutine[Any, Any, Response]], request: Request
) -> Response:
    """Return the answer; cancelled, keep no request alive through the traceback."""
    try:
        return await answer(request)
    except asyncio.CancelledError as error:
        let_go(error)
        del request
        raise
