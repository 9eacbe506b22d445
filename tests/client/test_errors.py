"""Which status becomes which exception, and what the exceptions say."""

import pickle

import grpc
import pytest

import vistazo_client
from vistazo_client import (
    EXCEPTION_FOR,
    AuthenticationError,
    Client,
    DeadlineExceededError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    PermissionDeniedError,
    RequestCancelledError,
    ServerError,
    UnavailableError,
    UnsupportedError,
    VistazoError,
    errors,
)
from vistazo_client.errors import MAX_MESSAGE_CHARACTERS

pytestmark = pytest.mark.usefixtures("quick_retries")

Code = grpc.StatusCode

# What the server's ServingErrors and its proxies answer with.
SERVING_CODES = {
    Code.UNAVAILABLE: UnavailableError,
    Code.NOT_FOUND: ModelNotFoundError,
    Code.INVALID_ARGUMENT: InvalidRequestError,
    Code.RESOURCE_EXHAUSTED: OverloadedError,
    Code.DEADLINE_EXCEEDED: DeadlineExceededError,
    Code.CANCELLED: RequestCancelledError,
    Code.INTERNAL: ServerError,
    Code.UNAUTHENTICATED: AuthenticationError,
    Code.PERMISSION_DENIED: PermissionDeniedError,
    Code.UNIMPLEMENTED: UnsupportedError,
}


def all_subclasses(kind):
    return {kind, *(each for child in kind.__subclasses__() for each in all_subclasses(child))}


def test_every_status_but_ok_has_an_exception():
    assert set(EXCEPTION_FOR) == set(Code) - {Code.OK}


@pytest.mark.parametrize(
    ("code", "kind"), SERVING_CODES.items(), ids=lambda value: getattr(value, "name", "")
)
def test_every_status_that_the_server_sends_has_an_exception_of_its_own(code, kind):
    assert EXCEPTION_FOR[code] is kind
    assert kind("why").code is code


def test_every_exception_is_exported_and_drawn_in_the_tree():
    for kind in all_subclasses(VistazoError):
        if kind.__module__.startswith(("vistazo_bench", "vistazo_evaluate", "vistazo_client.cli")):
            continue  # the commands' own: no caller of the library meets it
        assert kind.__name__ in vistazo_client.__all__
        assert kind.__name__ in errors.__doc__


def test_everything_that_is_exported_exists():
    for name in vistazo_client.__all__:
        assert hasattr(vistazo_client, name)


@pytest.mark.parametrize(
    "code", sorted(EXCEPTION_FOR, key=lambda code: code.name), ids=lambda code: code.name
)
def test_a_failed_call_raises_the_exception_of_its_status(client, server, code):
    server.always(code, "the reason")
    with pytest.raises(VistazoError) as failure:
        client.classify([b"a", b"b"])

    assert type(failure.value) is EXCEPTION_FOR[code]
    assert failure.value.code is code
    assert "the reason" in str(failure.value)
    assert failure.value.retry_after is None
    assert isinstance(failure.value.__cause__, grpc.RpcError)


def test_a_refusal_for_load_says_when_to_come_back(client, server):
    server.always(Code.RESOURCE_EXHAUSTED, "512 samples already waiting", grpc_retry_pushback_ms="15500")
    with pytest.raises(OverloadedError, match="512 samples already waiting") as refusal:
        client.classify(b"a cat")

    assert refusal.value.retry_after == 15.5


@pytest.mark.parametrize("pushback", ["-1", "soon", ""])
def test_a_pushback_that_is_no_time_to_wait_is_no_advice(client, server, pushback):
    server.always(Code.RESOURCE_EXHAUSTED, grpc_retry_pushback_ms=pushback)
    with pytest.raises(OverloadedError) as refusal:
        client.classify(b"a cat")

    assert refusal.value.retry_after is None


def test_a_message_is_one_line_of_readable_length(client, server):
    server.always(Code.INTERNAL, "first\nsecond \x1b[31mthird" + 2 * MAX_MESSAGE_CHARACTERS * "x")
    with pytest.raises(ServerError) as failure:
        client.classify(b"a cat")

    assert str(failure.value).startswith("first second [31mthirdxxx")
    assert len(str(failure.value)) == MAX_MESSAGE_CHARACTERS


def test_a_status_without_details_is_named(client, server):
    server.always(Code.PERMISSION_DENIED, "")

    with pytest.raises(
        PermissionDeniedError, match=f"^the server at {server.address} answered PERMISSION_DENIED$"
    ):
        client.classify(b"a cat")


def test_exceptions_survive_pickling():
    error = pickle.loads(pickle.dumps(OverloadedError("full", retry_after=2.0)))

    assert (str(error), error.code, error.retry_after) == ("full", Code.RESOURCE_EXHAUSTED, 2.0)


def test_without_a_server_the_address_and_the_reason_are_said(nobody):
    with Client(nobody) as client, pytest.raises(UnavailableError) as failure:
        client.classify(b"a cat")

    assert str(failure.value) == f"no server at {nobody} (connection refused)"


def test_an_unknown_host_is_said():
    with Client("nowhere.invalid:8001") as client, pytest.raises(UnavailableError) as failure:
        client.models()

    assert str(failure.value) == "no server at nowhere.invalid:8001 (no such host)"


@pytest.mark.parametrize(
    "details",
    [
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "
        "Failed to connect to remote host: Connection refused",
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "
        "Failed to connect to remote host: connect: Connection refused (111)",
    ],
    ids=["new grpc", "old grpc"],
)
def test_the_wording_of_old_and_new_grpc_is_understood(client, server, details):
    server.always(Code.UNAVAILABLE, details)

    with pytest.raises(UnavailableError, match=r"^no server at 127.0.0.1:\d+ \(connection refused\)$"):
        client.classify(b"a cat")
