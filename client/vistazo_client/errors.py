"""What can go wrong in a call, and which status of the server becomes which exception.

    VistazoError
    ├── InvalidRequestError       INVALID_ARGUMENT     an argument is wrong
    │   └── InvalidImageError                          one image cannot be used
    ├── ModelNotFoundError        NOT_FOUND            no such model or version
    ├── OverloadedError           RESOURCE_EXHAUSTED   refused for load; see `retry_after`
    ├── UnavailableError          UNAVAILABLE          no server there, or it is loading or draining
    │   └── TLSError                                   one there, but no way to trust or understand it
    ├── DeadlineExceededError     DEADLINE_EXCEEDED    no answer within the timeout
    ├── RequestCancelledError     CANCELLED            cancelled, for instance by `Client.close()`
    ├── AuthenticationError       UNAUTHENTICATED      no credentials, or not good ones
    ├── PermissionDeniedError     PERMISSION_DENIED    good credentials, but not for this
    ├── UnsupportedError          UNIMPLEMENTED        the server does not offer this call
    └── ServerError               INTERNAL and others  the server failed, or sent a status unknown to Vistazo

`error_from_rpc` is the one place where a failed call becomes an exception; the grpc error stays
reachable as its `__cause__`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import ClassVar, cast

import grpc

# gRFC A6: how many milliseconds to wait before a retry; below 0 means "do not".
PUSHBACK_TRAILER = "grpc-retry-pushback-ms"

# What the server says beside INVALID_ARGUMENT when it is the image, and not the request.
REASON_TRAILER = "vistazo-error-reason"
INVALID_IMAGE_REASON = "invalid-image"

# Longer details are cut: a message is for one line of a log.
MAX_MESSAGE_CHARACTERS = 500


class LocalPreprocessingWarning(UserWarning):
    """A client with preprocess="local" sends the images of a model as they are; the message says why."""


class VistazoError(Exception):
    """Base of every error that Vistazo's client raises about a call; its message is one line."""

    default_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self, message: str, *, code: grpc.StatusCode | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.code: grpc.StatusCode = code or self.default_code
        """The gRPC status of the answer, or the one that fits where the error was found before sending."""
        self.retry_after: float | None = retry_after
        """Seconds after which the server says that a retry has a chance; None: it gave no advice."""


class InvalidRequestError(VistazoError):
    """An argument is wrong: the message names it, what was expected and what came."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class InvalidImageError(InvalidRequestError):
    """One image cannot be used; the others of its list are not touched."""


class ModelNotFoundError(VistazoError):
    """The server has no model of this name, or not this version of it."""

    default_code = grpc.StatusCode.NOT_FOUND


class OverloadedError(VistazoError):
    """Refused for load; `retry_after` says when to try again, where the server knows."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class UnavailableError(VistazoError):
    """No server could be reached, or it is starting, draining, or the model is not loaded."""

    default_code = grpc.StatusCode.UNAVAILABLE


class TLSError(UnavailableError):
    """No secure connection: a certificate is not trusted, expired or another's, or there is no TLS."""


class DeadlineExceededError(VistazoError):
    """The timeout passed first. The server drops the work, too."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class RequestCancelledError(VistazoError):
    """The call was cancelled before its answer came."""

    default_code = grpc.StatusCode.CANCELLED


class AuthenticationError(VistazoError):
    """The server wants credentials, and did not get good ones."""

    default_code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDeniedError(VistazoError):
    """The credentials are good, but not for this call."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class UnsupportedError(VistazoError):
    """The server does not know this call: an older Vistazo, or no Vistazo at all."""

    default_code = grpc.StatusCode.UNIMPLEMENTED


class ServerError(VistazoError):
    """The server failed, or answered with a status or a response that Vistazo never sends."""

    default_code = grpc.StatusCode.INTERNAL


EXCEPTION_FOR: Mapping[grpc.StatusCode, type[VistazoError]] = {
    grpc.StatusCode.CANCELLED: RequestCancelledError,
    grpc.StatusCode.UNKNOWN: ServerError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.NOT_FOUND: ModelNotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: ServerError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.FAILED_PRECONDITION: ServerError,
    grpc.StatusCode.ABORTED: ServerError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
    grpc.StatusCode.INTERNAL: ServerError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DATA_LOSS: ServerError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
}
"""The exception for each status but OK."""


def error_from_rpc(error: grpc.RpcError, *, address: str, timeout: float) -> VistazoError:
    """Return the exception that tells a caller about `error`, a call to `address` that failed.

    Which class is decided by the status, and within it by the server's reason; only a connection that
    failed is looked at more closely.
    """
    code = error.code()
    details = one_line(error.details() or "")
    kind = exception_for(code, trailer(error, REASON_TRAILER))
    if code is grpc.StatusCode.UNAVAILABLE:
        reason = _tls_reason(details)
        if reason is not None:
            return TLSError(reason.format(address=address), code=code)
    message = _message(code, details, address=address, timeout=timeout)
    return kind(message, code=code, retry_after=_retry_after(error))


def error_from_code(number: int, message: str, reason: str) -> VistazoError:
    """Return the exception for an error that the server sends beside good results."""
    code = _CODE_FOR_NUMBER.get(number, grpc.StatusCode.UNKNOWN)
    kind = exception_for(code, reason)
    return kind(one_line(message) or f"the server answered {code.name}", code=code)


def exception_for(code: grpc.StatusCode, reason: str | None) -> type[VistazoError]:
    """Return the exception for a status and what the server says beside it."""
    if code is grpc.StatusCode.INVALID_ARGUMENT and reason == INVALID_IMAGE_REASON:
        return InvalidImageError
    return EXCEPTION_FOR[code]


def one_line(text: str) -> str:
    """Return `text` without line breaks and control characters, cut to a readable length."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= MAX_MESSAGE_CHARACTERS else line[: MAX_MESSAGE_CHARACTERS - 1] + "…"


_CODE_FOR_NUMBER: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in EXCEPTION_FOR}

# grpc's own words for a connection that failed: "…; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to
# connect to remote host: connect: Connection refused (111)". The reason is after the last colon. The
# first words are those of its two ways to balance.
_NO_CONNECTION = ("connections to all backends failing", "failed to connect to all addresses")
_CONNECTION_REASON = re.compile(r"(?:.*: )?(?P<reason>.+?)(?: \(\d+\))?$")
_NO_SUCH_HOST = ("DNS resolution failed", "errors resolving")

# How TLS fails, in the words of grpc and of its BoringSSL, and in ours.
_TLS_REASONS = (
    (
        re.compile(r"CERTIFICATE_VERIFY_FAILED: certificate has expired"),
        "the certificate of the server at {address} has expired",
    ),
    (
        re.compile(r"CERTIFICATE_VERIFY_FAILED"),
        "the certificate of the server at {address} is not trusted: "
        "another authority than the given CA signed it, or it is not valid now",
    ),
    (
        re.compile(r"Hostname Verification Check failed|is not in peer certificate"),
        "the certificate of the server at {address} is for another name",
    ),
    (re.compile(r"WRONG_VERSION_NUMBER"), "the server at {address} does not speak TLS"),
    (
        re.compile(r"[Hh]andshake failed|security handshaker"),
        "no TLS connection to the server at {address}: the handshake failed",
    ),
)

# A server that speaks TLS hangs up on a client that does not, and on one without a certificate that it
# asks for; so does one that is killed at that moment.
_HANGS_UP = "Socket closed"


def _tls_reason(details: str) -> str | None:
    """Return what to say of a connection that TLS prevented; None where it was not TLS."""
    if not details.startswith(_NO_CONNECTION):
        return None
    return next((reason for pattern, reason in _TLS_REASONS if pattern.search(details)), None)


def _message(code: grpc.StatusCode, details: str, *, address: str, timeout: float) -> str:
    """Return one line for people: the server's own words, or plain ones in place of grpc's."""
    if code is grpc.StatusCode.UNAVAILABLE and details.startswith(_NO_CONNECTION):
        match = _CONNECTION_REASON.match(details)
        reason = match["reason"] if match else details
        if reason == _HANGS_UP:
            return (
                f"the server at {address} closed the connection at once; "
                "does it want TLS, or a client's certificate?"
            )
        return f"no server at {address} ({reason[0].lower()}{reason[1:]})"
    if code is grpc.StatusCode.UNAVAILABLE and details.startswith(_NO_SUCH_HOST):
        return f"no server at {address} (no such host)"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and details.lower() in {"", "deadline exceeded"}:
        return f"no answer from {address} within {timeout:g} s"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return f"the server at {address} does not offer this call; is it a Vistazo server? ({details})"
    return details or f"the server at {address} answered {code.name}"


def _retry_after(error: grpc.RpcError) -> float | None:
    """Return the server's pushback in seconds, or None where it sent none that can be read."""
    pushback = trailer(error, PUSHBACK_TRAILER) or ""
    return int(pushback) / 1000 if pushback.isdecimal() else None


def trailer(error: grpc.RpcError, key: str) -> str | None:
    """Return what the server sent after a failed call under `key`; None: nothing."""
    # Pairs, whatever the type stubs say, for blocking and asyncio calls alike; but dict() takes those of
    # an older grpc.aio for a mapping, which they are not.
    pairs = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    return next((value for name, value in pairs if name == key and isinstance(value, str)), None)
