"""What `Client` and `AsyncClient` have in common: everything but waiting.

Nothing here is public.
"""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, Generic, Literal, TypeAlias, get_args

import grpc
from google.protobuf.wrappers_pb2 import Int32Value

from vistazo_client._channel import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_SECONDS,
    MAX_MESSAGE_BYTES,
    SERVING,
    ChannelFactory,
    ChannelT,
    Link,
)
from vistazo_client._codec import Chunk, Entry, Query
from vistazo_client._connection import Connection
from vistazo_client._images import is_one_image
from vistazo_client._retry import DEFAULT_RETRIES, Attempts
from vistazo_client._streams.session import StreamSession
from vistazo_client._target import Target, find_targets, is_loopback, parse_addresses
from vistazo_client.credentials import TLS, PathInput, token_source
from vistazo_client.errors import (
    DeadlineExceededError,
    ModelNotFoundError,
    RequestCancelledError,
    UnavailableError,
    VistazoError,
    error_from_rpc,
)

if TYPE_CHECKING:
    from vistazo_client._local.preparation import Preparation

Preprocess: TypeAlias = Literal["server", "local"]
"""Where images are prepared."""

# While one request runs, the next is already in the server's queue: enough to keep the engine busy.
# More would only fill a queue that others share, and wait there against their own deadline.
MAX_REQUESTS_IN_FLIGHT: Final = 2

# Between two looks at a server that is starting: short enough not to be felt.
READY_POLL_SECONDS: Final = 0.1

# A year. What is longer, infinity too, is more than timers and grpc can count.
MAX_TIMEOUT_SECONDS: Final = 366 * 86400.0

# grpc.aio puts this in place of the server's status when a request was written just as that came. The next
# attempt finds out.
_WRITTEN_TOO_LATE: Final = "Internal error from Core"

# What grpc says of a deadline that passed on this side.
_OWN_TIMEOUT: Final = "Deadline Exceeded"

_Metadata = tuple[tuple[str, str], ...]


class ClientCore(Generic[ChannelT]):
    """The settings of a client, its connection, and the rules that its calls follow."""

    def __init__(
        self,
        address: str | Iterable[str] = DEFAULT_ADDRESS,
        *,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        retries: int = DEFAULT_RETRIES,
        tls: TLS | bool = False,
        token: str = "",
        token_file: PathInput | None = None,
        allow_insecure_token: bool = False,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        preprocess: Preprocess = "server",
    ) -> None:
        addresses = parse_addresses(address)
        if preprocess not in get_args(Preprocess):
            raise ValueError(f"expected preprocess to be one of {get_args(Preprocess)}, got {preprocess!r}")
        if retries < 0:
            raise ValueError(f"expected 0 retries or more, got {retries}")
        secure = TLS() if tls is True else tls or None
        self._address = ",".join(addresses)
        self._timeout = check_timeout(timeout)
        self._retries = retries
        self._max_message_bytes = max_message_bytes
        self._token = token_source(token, token_file)
        if (token or token_file) and not (secure or allow_insecure_token or all(map(is_loopback, addresses))):
            raise ValueError(
                f"expected TLS for a token to {self._address}, where others could read it on its way; "
                "allow_insecure_token sends it all the same"
            )
        factory = ChannelFactory(
            max_message_bytes,
            pem=secure.read() if secure else None,
            server_name=secure.server_name if secure else "",
        )
        targets = find_targets(addresses, tls=secure is not None)
        self._connection = Connection(targets, self._opener(factory))
        self._closed = False
        self._preparation = _preparation(max_message_bytes) if preprocess == "local" else None

    def _opener(self, factory: ChannelFactory) -> Callable[[Target], ChannelT]:
        """Return what opens a channel of this client's kind."""
        raise NotImplementedError

    @property
    def address(self) -> str:
        """Where the server is; several addresses with commas between them."""
        return self._address

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._address}{' closed' if self._closed else ''}>"

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"this {type(self).__name__} is closed; make another")

    def _check_still_open(self) -> None:
        """Raise RequestCancelledError when the client was closed since the call began."""
        if self._closed:
            raise RequestCancelledError(f"the {type(self).__name__} was closed")

    def _check_images(self, images: object, instead: str) -> None:
        self._check_open()
        if is_one_image(images):
            raise TypeError(f"expected an iterable of images, got one {type(images).__name__}; use {instead}")

    def _deadline(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else check_timeout(timeout)

    def _attempts(self, timeout: float) -> Attempts:
        return Attempts(retries=self._retries, timeout=timeout)

    def _metadata(self) -> _Metadata | None:
        """Return what goes with every call. Raises AuthenticationError when the token file has none now."""
        token = self._token()
        return (("authorization", f"Bearer {token}"),) if token else None

    def _delay_after(
        self, attempts: Attempts, link: Link[ChannelT], error: VistazoError, *, sent: float
    ) -> float:
        """Return the seconds until the next attempt, or raise `error` where there is to be none.

        sent: when the attempt that failed was made, in the time of time.monotonic.
        """
        if isinstance(error, UnavailableError | RequestCancelledError):
            self._connection.failed(link)
        elif not _is_own_timeout(error):
            link.answered()
        elif link.alive_at < sent:
            # Neither this call nor any other has had an answer since: as good as a refused connection.
            self._connection.hangs(link)
        delay = attempts.delay_after(error)
        if delay is None:
            raise attempts.explain(error)
        return delay

    def _encode_again(self, query: Query, entry: Entry) -> Future[Entry]:
        """Return the future of an image of a stream that was prepared in vain, as it is."""
        assert self._preparation is not None  # noqa: S101  for mypy: it was prepared
        return self._preparation.again(entry, query)

    def _check_waited(self, chunk: Chunk, spent: float, timeout: float) -> float:
        """Return the seconds that a request has spent with the wait for its images.

        Raises DeadlineExceededError when there are no more, RequestCancelledError when the client was closed.
        """
        self._check_still_open()
        spent += chunk.waited
        if spent >= timeout:
            raise DeadlineExceededError(f"the images were not prepared within {timeout:g} s")
        return spent

    def _stream_session(self, query: Query, timeout: float | None) -> StreamSession:
        return StreamSession(
            query,
            timeout=self._deadline(timeout),
            retries=self._retries,
            can_move=self._connection.has_several and self._retries > 0,
        )

    def _stream_error(self, link: Link[ChannelT], error: grpc.RpcError) -> VistazoError:
        """Return the exception for a stream that failed."""
        failure: VistazoError
        if error.code() is grpc.StatusCode.INTERNAL and error.details() == _WRITTEN_TOO_LATE:
            failure = UnavailableError("the server ended the stream, and grpc does not say why")
        else:
            failure = error_from_rpc(error, address=self._address, timeout=self._timeout)
        failure.__cause__ = error
        if isinstance(failure, UnavailableError):
            self._connection.failed(link)
        return failure

    def _stream_hangs(self, link: Link[ChannelT]) -> VistazoError:
        """Return the exception for a stream that was left, as nothing was heard of its server."""
        self._connection.hangs(link)
        return UnavailableError(f"a server of {self._address} takes requests and answers none")

    def _serving(self, response: Int32Value) -> bool:
        return response.value == SERVING

    def _no_such_model(self, model: str) -> ModelNotFoundError:
        # The health protocol sends this status without a word.
        return ModelNotFoundError(f"the server at {self._address} has no model {model!r}")

    def _ready_wait(self, model: str, timeout: float) -> "ReadyWait":
        return ReadyWait(
            f"{model or 'the server at ' + self._address} is not serving",
            timeout=check_timeout(timeout),
            longest_look=self._timeout,
        )


def _preparation(max_message_bytes: int) -> "Preparation":
    """Return what preprocessing at the client takes. Raises ImportError where Pillow is not installed."""
    try:
        # Only here: whoever does not want it needs no Pillow, and does not wait for it.
        from vistazo_client._local.preparation import Preparation  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "PIL":
            raise
        raise ImportError(
            "preprocess='local' needs Pillow, which is not installed; pip install 'vistazo[local]'",
            name="PIL",
        ) from error
    return Preparation(max_message_bytes=max_message_bytes)


class ReadyWait:
    """The state of a wait until something serves: how long it may go on, and what is missing."""

    def __init__(self, not_serving: str, *, timeout: float, longest_look: float) -> None:
        self._not_serving = not_serving
        self._timeout = timeout
        self._longest_look = longest_look
        self._deadline = time.monotonic() + timeout

    def look_timeout(self) -> float:
        """Return the seconds that the next look may take."""
        left = max(self._deadline - time.monotonic(), READY_POLL_SECONDS)
        return min(left, self._longest_look)

    def check(self, error: VistazoError | None) -> None:
        """Return if there is time for another look, else raise DeadlineExceededError.

        error: why the last look failed; None when it found what does not serve yet.
        """
        if time.monotonic() + READY_POLL_SECONDS > self._deadline:
            missing = self._not_serving if error is None else str(error)
            raise DeadlineExceededError(f"not ready after {self._timeout:g} s: {missing}")


def _is_own_timeout(error: VistazoError) -> bool:
    """Return whether it was grpc here that ended a call at its deadline; a server says more."""
    cause = error.__cause__
    is_rpc = isinstance(error, DeadlineExceededError) and isinstance(cause, grpc.RpcError)
    return is_rpc and cause.details() == _OWN_TIMEOUT  # type: ignore[union-attr]  # what RpcErrors have


def check_timeout(timeout: float) -> float:
    """Return `timeout`, or raise ValueError when it is no time."""
    if not timeout > 0:
        raise ValueError(f"expected a timeout above 0 seconds, got {timeout}")
    return min(timeout, MAX_TIMEOUT_SECONDS)
