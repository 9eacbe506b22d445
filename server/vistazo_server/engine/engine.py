"""Engine: the threads that run all models of a device, one unless several instances are wanted."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


class Engine:
    """Begins what it is given in the order given, `instances` at a time. Close it after its models."""

    def __init__(self, *, instances: int = 1) -> None:
        self.instances = instances
        self._threads = ThreadPoolExecutor(max_workers=instances, thread_name_prefix="engine")
        self._pending = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs or waits."""
        return self._pending == 0

    async def run(self, work: Callable[[], Result]) -> Result:
        """Return what `work` returns, once everything given before has been begun."""
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._pending -= 1

    def close(self) -> None:
        """Wait for what was given, and end the threads."""
        self._threads.shutdown(wait=True)
