"""An AsyncClient behind the face of a Client, so that one test can hold both to the same behaviour."""

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

from vistazo_client import AsyncClient

PATIENCE_SECONDS = 60.0


class BlockingAsyncClient:
    """Every call of an AsyncClient, awaited in an event loop that runs in a thread of its own."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self._client = AsyncClient(*arguments, **settings)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> "BlockingAsyncClient":
        self._run(self._client.__aenter__)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._run(self._loop.shutdown_asyncgens)
        self._run(self._loop.shutdown_default_executor)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_SECONDS)
        self._loop.close()

    def __repr__(self) -> str:
        return repr(self._client).replace("AsyncClient", "Client")

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)
        if not callable(attribute):
            return attribute

        def call(*arguments: Any, **keywords: Any) -> Any:
            result = self._run(attribute, *arguments, **keywords)
            return self._iterate(result) if isinstance(result, AsyncIterator) else result

        return call

    def _run(self, function: Any, *arguments: Any, **keywords: Any) -> Any:
        async def run() -> Any:
            result = function(*arguments, **keywords)
            return await result if inspect.isawaitable(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(PATIENCE_SECONDS)

    def _iterate(self, results: Any) -> Iterator[Any]:
        end = object()
        try:
            while (result := self._run(anext, results, end)) is not end:
                yield result
        finally:
            self._run(results.aclose)
