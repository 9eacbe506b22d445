"""Reading the disk beside the event loop, so that a disk that hangs holds up nothing and nobody."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


async def beside_the_loop(read: Callable[..., Result], *arguments: Any) -> Result:  # noqa: ANN401
    """Return `read(*arguments)`, run in a thread of its own.

    Not asyncio.to_thread: the process waits for its threads when it ends, and for a network disk that does
    not answer that would be for ever. This thread may be left behind.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if future.done():  # nobody waits any more
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, caught = None, None
        try:
            result = read(*arguments)
        except BaseException as error:  # noqa: BLE001  it is raised where the result is awaited
            caught = error
        with contextlib.suppress(RuntimeError):  # the loop may have ended meanwhile
            loop.call_soon_threadsafe(settle, result, caught)

    threading.Thread(target=run, name="disk", daemon=True).start()
    return await future
