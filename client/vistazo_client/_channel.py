"""The connection to a server: its options, each with its reason, and the health call.

Nothing here is public.
"""

from importlib.metadata import version

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

DEFAULT_ADDRESS = "127.0.0.1:8001"
"""Where `vistazo serve` listens unless told otherwise."""

DEFAULT_TIMEOUT_SECONDS = 10.0
"""A wait that people bear, and many times what one request of a busy server takes."""

# The server's own default. A larger image could be sent only to be refused.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

# Finds a dead connection within a minute. A server refuses pings that come too often ("too many
# pings"); Vistazo's allows one every 10 s, also on a connection without calls.
KEEPALIVE_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 10_000

# grpc waits up to two minutes between attempts, far too long for a caller whose server restarted.
FIRST_RECONNECT_MS = 200
LAST_RECONNECT_MS = 5_000

_LOOPBACK_PREFIXES = ("localhost:", "127.", "[::1]:")


def check_address(address: str) -> str:
    """Return `address`, or raise ValueError when it is a URL or empty."""
    if not address or address.startswith(("http://", "https://")):
        raise ValueError(f"expected the server's address as HOST:PORT, got {address!r}")
    return address


def channel_options(address: str, max_message_bytes: int) -> list[tuple[str, int | str]]:
    """Return the options of every channel that Vistazo opens."""
    options: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", FIRST_RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", LAST_RECONNECT_MS),
        ("grpc.primary_user_agent", f"vistazo-python/{version('vistazo')}"),
    ]
    if address.startswith(_LOOPBACK_PREFIXES):
        # grpc sends even loopback traffic to http_proxy unless no_proxy says otherwise.
        options.append(("grpc.enable_http_proxy", 0))
    return options


def open_channel(address: str, max_message_bytes: int) -> grpc.Channel:
    """Return a channel to `address`; it connects when first used."""
    return grpc.insecure_channel(address, options=channel_options(address, max_message_bytes))


# grpc.health.v1 without its package, which only the server needs. Its messages have one field each:
#   message HealthCheckRequest  { string service = 1; }
#   message HealthCheckResponse { enum ServingStatus { UNKNOWN = 0; SERVING = 1; NOT_SERVING = 2; … }
#                                 ServingStatus status = 1; }
# (https://github.com/grpc/grpc-proto/blob/master/grpc/health/v1/health.proto). On the wire these are
# protobuf's own StringValue and Int32Value.
HEALTH_METHOD = "/grpc.health.v1.Health/Check"
SERVING = 1


def health_call(channel: grpc.Channel) -> "grpc.UnaryUnaryMultiCallable[StringValue, Int32Value]":
    """Return the standard health check: a service's name in, its ServingStatus out."""
    return channel.unary_unary(
        HEALTH_METHOD,
        request_serializer=StringValue.SerializeToString,
        response_deserializer=Int32Value.FromString,
    )
