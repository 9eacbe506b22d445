"""Worker: an object that lives in a process of its own.

What is measured must not share an interpreter lock with what measures it. A worker ends with its
`with` block, and when its parent dies, however that happens: the closed pipe tells it.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar, cast

from vistazo_client.cli.errors import CommandError

# Longer than any target takes to close: a server may finish its requests first.
END_SECONDS = 60.0


class Closable(Protocol):
    """What a worker can hold."""

    def close(self) -> None:
        """Free everything; called once, at the end."""


_Target = TypeVar("_Target", bound=Closable)
_Params = ParamSpec("_Params")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class _Failure:
    """What a call raised, in a form that always survives the pipe."""

    error: Exception | None
    """None where the exception itself cannot be sent."""
    text: str


class Worker(Generic[_Target]):
    """A process that builds `factory(*arguments)` and then runs methods of it, one call at a time."""

    def __init__(self, factory: Callable[..., _Target], *arguments: object) -> None:
        # spawn, not fork: grpc and ONNX Runtime have threads that a fork would leave behind.
        context = multiprocessing.get_context("spawn")
        self._pipe, other_end = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other_end, factory, arguments), name=factory.__name__, daemon=True
        )
        self._process.start()
        other_end.close()
        # It is building its target.
        self._busy = True

    def __enter__(self) -> Self:
        try:
            self._receive()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid or 0

    def call(
        self,
        method: Callable[Concatenate[_Target, _Params], _Result],
        *arguments: _Params.args,
        **named: _Params.kwargs,
    ) -> _Result:
        """Return what `method`, a method of the target's class, returns there, or raise what it raises."""
        self._busy = True
        try:
            self._pipe.send((method, arguments, named))
        except OSError as error:
            raise CommandError(f"the process {self._process.name} ended unexpectedly") from error
        return cast("_Result", self._receive())

    def close(self) -> None:
        """End the process: by closing its pipe, out of a call by SIGTERM, and in the end by force."""
        self._pipe.close()
        if self._busy:
            self._process.terminate()
        self._process.join(END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> object:
        try:
            reply = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise CommandError(f"the process {self._process.name} ended unexpectedly") from error
        self._busy = False
        if isinstance(reply, _Failure):
            raise reply.error or CommandError(reply.text)
        return reply


def _serve(
    pipe: multiprocessing.connection.Connection, factory: Callable[..., Closable], arguments: tuple[Any, ...]
) -> None:
    """Run in the new process: answer calls until the pipe is closed."""
    # Ctrl-C reaches the whole process group; the parent ends its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit)
    try:
        target = factory(*arguments)
    except Exception as error:  # noqa: BLE001  the parent raises it
        pipe.send(_failure(error))
        return
    with contextlib.closing(target), contextlib.suppress(EOFError, OSError):
        pipe.send(None)
        while True:
            method, positional, named = pipe.recv()
            try:
                reply = method(target, *positional, **named)
            except Exception as error:  # noqa: BLE001
                reply = _failure(error)
            pipe.send(reply)


def _exit(number: int, frame: FrameType | None) -> None:
    """Leave the running call, so that the target is closed."""
    del number, frame
    raise SystemExit


def _failure(error: Exception) -> _Failure:
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    # Others, such as grpc's, may not survive pickling; a missing package must keep its type and name.
    portable = isinstance(error, CommandError | ModuleNotFoundError)
    if isinstance(error, ModuleNotFoundError):
        error = ModuleNotFoundError(str(error), name=error.name)
    return _Failure(error if portable else None, text)
