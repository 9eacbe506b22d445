"""What can go wrong in serving, and the one status each is answered with.

    ServingError
    ├── InvalidRequestError       INVALID_ARGUMENT     a field is wrong
    │   └── InvalidImageError     INVALID_ARGUMENT     one image cannot be used
    ├── ModelNotFoundError        NOT_FOUND            no such model or version
    ├── OverloadedError           RESOURCE_EXHAUSTED   refused for load, with a pushback
    │   ├── QueueFullError
    │   └── DeadlineUnreachableError
    ├── UnavailableError          UNAVAILABLE          not now, perhaps soon, perhaps elsewhere
    │   ├── ModelNotReadyError
    │   └── DrainingError
    ├── DeadlineExceededError     DEADLINE_EXCEEDED    the caller's time ran out
    ├── UnauthenticatedError      UNAUTHENTICATED      no token, or one that is not known
    ├── PermissionDeniedError     PERMISSION_DENIED    a token without the scope that the RPC needs
    ├── ModelControlError         FAILED_PRECONDITION  a load or unload that cannot be done as things are
    ├── PreparedOtherwiseError    FAILED_PRECONDITION  images that were prepared for another preprocessing
    ├── UnimplementedError        UNIMPLEMENTED        an RPC that this server does not have
    └── InferenceError            INTERNAL             the engine failed

Raised where the fact is known, turned into a status once, in `calls`.
"""

from typing import ClassVar, Final, TypeVar

import grpc

SHORTEST_RETRY_SECONDS: Final = 0.001

ErrorT = TypeVar("ErrorT", bound=BaseException)


class ServingError(Exception):
    """A request could not be answered; the message is one line, written for the caller."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    retry_after: float | None = None
    """Seconds after which a retry has a chance; None: no advice."""
    reason: ClassVar[str] = ""
    """What the status alone does not say, for programs; empty: nothing."""


class InvalidRequestError(ServingError):
    """A field of the request is wrong: the message names it, what was expected and what came."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class InvalidImageError(InvalidRequestError):
    """One image cannot be used; the others of its request are not touched."""

    reason = "invalid-image"


class ModelNotFoundError(ServingError):
    """The repository has no model of this name, or not this version of it."""

    code = grpc.StatusCode.NOT_FOUND


class OverloadedError(ServingError):
    """Refused at the door: the request would have waited in vain."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    retry_after: float

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        # Before anything was measured the prediction is 0, and "at once" is no advice.
        self.retry_after = max(retry_after, SHORTEST_RETRY_SECONDS)


class QueueFullError(OverloadedError):
    """As many samples wait as may wait."""


class DeadlineUnreachableError(OverloadedError):
    """The predicted finish is past the caller's deadline."""


class UnavailableError(ServingError):
    """Not now: a retry, here or elsewhere, may succeed."""

    code = grpc.StatusCode.UNAVAILABLE


class ModelNotReadyError(UnavailableError):
    """The model is in the repository but is loading or failed to load."""


class UnimplementedError(ServingError):
    """An RPC of a published protocol that this server does not have."""

    code = grpc.StatusCode.UNIMPLEMENTED


class DrainingError(UnavailableError):
    """The server is finishing what it accepted and takes nothing new."""


class DeadlineExceededError(ServingError):
    """The deadline passed before the answer came: in the queue, or while the batch ran."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class UnauthenticatedError(ServingError):
    """The caller sent no bearer token, or one that is not known."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDeniedError(ServingError):
    """The caller's token is known, but not good for this RPC."""

    code = grpc.StatusCode.PERMISSION_DENIED


class ModelControlError(ServingError):
    """A load or unload that cannot be done until something changes: the files, or the server's settings."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class PreparedOtherwiseError(ServingError):
    """The caller prepared the images in another way than the version that would answer does.

    A retry of the same request fails again, but not one of the images as they are.
    """

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "prepared-otherwise"


class InferenceError(ServingError):
    """The engine failed; the stack is in the log, not in the message."""


class StartupError(Exception):
    """The server cannot start; the message is one line that says what to do."""


class ModelLoadError(Exception):
    """A model of the repository cannot be served; the message is one line that says why."""


class RepositoryUnreadableError(Exception):
    """The model repository, or a model's folder in it, cannot be read now; the message is one line."""


def without_frames(error: ErrorT) -> ErrorT:
    """Return `error`, once it was dealt with, without what it holds of those that it came through.

    A traceback holds frames, and they hold the request with its images. Such an error is often part of a
    reference cycle, through a frame that has it or through a future in a frame: until Python's collector came
    by, 80 refused requests of 20 MiB took 3.5 GB. So the error is made to let go of the frames. They are not
    cleared: some may be of coroutines that still work for others, and would be closed by that.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            without_frames(member)
    return error


def one_line(error: Exception, *, characters: int) -> str:
    """Return what a library's exception says, fit for one line of a message."""
    return " ".join(str(error).split())[:characters] or type(error).__name__
