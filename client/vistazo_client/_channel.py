"""Channels to servers: their options, each with its reason, and the calls that go over them.

Nothing here is public.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Generic, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from vistazo_client._target import Target, is_loopback, parse_addresses
from vistazo_proto.classification_pb2_grpc import ClassificationServiceStub

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

# grpc waits up to two minutes between attempts, far too long for a caller whose server restarted; and
# 20 s for one attempt, which an address where no one even refuses would cost.
FIRST_RECONNECT_MS = 200
LAST_RECONNECT_MS = 2_000
CONNECT_TIMEOUT_MS = 5_000

# A replica that comes back may have another address. grpc asks again when a connection ends, but by
# default not twice in 30 s.
RESOLVE_INTERVAL_MS = 5_000

# Every address of a name gets its share, and one that is down is left out until it is back.
SERVICE_CONFIG: Mapping[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}


def check_address(address: str) -> str:
    """Return `address`, or raise ValueError when it is a URL or empty."""
    parse_addresses(address)
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
        ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
        ("grpc.max_reconnect_backoff_ms", LAST_RECONNECT_MS),
        ("grpc.dns_min_time_between_resolutions_ms", RESOLVE_INTERVAL_MS),
        ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
        ("grpc.primary_user_agent", f"vistazo-python/{version('vistazo')}"),
    ]
    if is_loopback(address):
        # grpc sends even loopback traffic to http_proxy unless no_proxy says otherwise.
        options.append(("grpc.enable_http_proxy", 0))
    return options


def open_channel(address: str, max_message_bytes: int) -> grpc.Channel:
    """Return a channel to `address`; it connects when first used."""
    return grpc.insecure_channel(address, options=channel_options(address, max_message_bytes))


@dataclass(frozen=True, slots=True)
class ChannelFactory:
    """How this client opens its channels, blocking and asyncio ones alike."""

    max_message_bytes: int
    pem: tuple[bytes | None, bytes | None, bytes | None] | None = None
    """CA, key and certificate; None: no TLS."""
    server_name: str = ""
    """Name to look for in the server's certificate; empty: the address's."""

    def open(self, target: Target) -> grpc.Channel:
        """Return a blocking channel."""
        options = self._options(target)
        if self.pem is None:
            return grpc.insecure_channel(target.uri, options)
        return grpc.secure_channel(target.uri, grpc.ssl_channel_credentials(*self.pem), options)

    def open_aio(self, target: Target) -> grpc.aio.Channel:
        """Return a channel that belongs to the running event loop."""
        options = self._options(target)
        if self.pem is None:
            return grpc.aio.insecure_channel(target.uri, options)
        return grpc.aio.secure_channel(target.uri, grpc.ssl_channel_credentials(*self.pem), options)

    def _options(self, target: Target) -> list[tuple[str, int | str]]:
        options = channel_options(target.uri, self.max_message_bytes)
        # Else channels to one target share a connection through the process: also a forked child's with
        # its parent's, and those of clients that show different certificates.
        options.append(("grpc.use_local_subchannel_pool", 1))
        if target.authority:
            options.append(("grpc.default_authority", target.authority))
        if self.server_name:
            options.append(("grpc.ssl_target_name_override", self.server_name))
        return options


ChannelT = TypeVar("ChannelT")


class Link(Generic[ChannelT]):
    """A channel and the calls that can be made over it."""

    def __init__(self, channel: ChannelT) -> None:
        self.channel = channel
        # The same stub makes blocking calls of a blocking channel and awaitable ones of the other.
        self.service: Any = ClassificationServiceStub(cast("Any", channel))
        self.health: Any = health_call(channel)
        self.down_until = 0.0
        """Until when the others are asked first."""
        self.alive_at = 0.0
        """When the server last answered anything, errors included, in the time of time.monotonic."""
        self.silent = 0
        """Calls in a row that ended at their deadline without any sign of life."""

    def answered(self) -> None:
        """Take note of a sign of life."""
        self.alive_at = time.monotonic()
        self.silent = 0


# grpc.health.v1 without its package, which only the server needs. Its messages have one field each:
#   message HealthCheckRequest  { string service = 1; }
#   message HealthCheckResponse { enum ServingStatus { UNKNOWN = 0; SERVING = 1; NOT_SERVING = 2; … }
#                                 ServingStatus status = 1; }
# (https://github.com/grpc/grpc-proto/blob/master/grpc/health/v1/health.proto). On the wire these are
# protobuf's own StringValue and Int32Value.
HEALTH_METHOD = "/grpc.health.v1.Health/Check"
SERVING = 1


def health_call(channel: Any) -> Any:  # noqa: ANN401  blocking and asyncio channels share no type
    """Return the standard health check: a service's name in, its ServingStatus out."""
    return channel.unary_unary(
        HEALTH_METHOD,
        request_serializer=StringValue.SerializeToString,
        response_deserializer=Int32Value.FromString,
    )
