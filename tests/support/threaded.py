"""A real server in a thread of its own, for tests that block theirs, such as those of commands."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.serving import serving


@contextmanager
def served(models: Path, **settings: Any) -> Iterator[str]:
    """Hold a server in a thread of its own, as the command blocks its; give its address."""
    address: Future[str] = Future()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with serving(models, **settings) as server:
            address.set_result(server.address)
            await stop.wait()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        except Exception as error:  # noqa: BLE001  raised by who waits for it
            address.set_exception(error)
        finally:
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield address.result(60)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
