"""The gRPC port: its limits, its keepalive, and how it is bound, in plaintext or with TLS."""

import socket
from dataclasses import dataclass
from typing import Final

import grpc.aio

from vistazo_server.errors import StartupError
from vistazo_server.rpc.tls import Certificates

HANDSHAKE_SECONDS: Final = 20
"""A connection that has not finished its handshakes (TLS, and HTTP/2's settings) by then is closed. In grpc's
own two minutes, half-open connections would fill the limit six times as easily."""

MAX_METADATA_BYTES: Final = 16 * 1024
"""Headers of one request, as HPACK counts them. grpc refuses above this with RESOURCE_EXHAUSTED; by default
it would refuse some between 8 and 16 KiB and others not."""

KEEPALIVE_SECONDS: Final = 60
"""After so long without a byte the other side is asked for a sign of life."""
KEEPALIVE_TIMEOUT_SECONDS: Final = 20
"""A connection whose other side gives none by then is closed."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client, or all of them, may take of the server."""

    message_bytes: int
    connections: int
    """0: any number."""
    streams: int
    """RPCs at a time on one connection."""
    age_seconds: float
    """After which a connection is drained; 0: never."""
    age_grace_seconds: float
    """For RPCs on a connection that is drained."""


def server_options(limits: Limits) -> list[tuple[str, int]]:
    """Return grpc's options of the server.

    https://github.com/grpc/grpc/blob/master/include/grpc/impl/channel_arg_names.h describes them.
    """
    options = [
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", limits.message_bytes),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", limits.streams),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
        # A second server on the same port is a mistake to be told of, not to share requests with.
        ("grpc.so_reuseport", 0),
        # Clients that keep idle connections alive ping every 30 s; stricter, they are sent away with
        # too_many_pings.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
        # Of the ping itself: with the timeout above alone, a connection that answers nothing stays (tried
        # with grpcio 1.85); the other is for a client that never acknowledges the server's settings.
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
        ("grpc.http2.settings_timeout", KEEPALIVE_TIMEOUT_SECONDS * 1000),
    ]
    if limits.connections:
        options.append(("grpc.max_allowed_incoming_connections", limits.connections))
    if limits.age_seconds:
        options.append(("grpc.max_connection_age_ms", _ms(limits.age_seconds)))
        options.append(("grpc.max_connection_age_grace_ms", _ms(limits.age_grace_seconds)))
    return options


def _ms(seconds: float) -> int:
    return max(1, min(int(seconds * 1000), 2**31 - 1))  # grpc takes an int32


def bind(grpc_server: grpc.aio.Server, address: str, certificates: Certificates | None) -> int:
    """Return the port that the server was bound to; without certificates it speaks plaintext.

    Raises StartupError.
    """
    credentials = None if certificates is None else certificates.credentials()
    host, _, port = address.rpartition(":")
    try:
        # grpc's core would write its own account of a failure to stderr; asked first, it never comes to that.
        for family, kind, protocol, _, target in socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(target)
        if credentials is None:
            return grpc_server.add_insecure_port(address)
        return grpc_server.add_secure_port(address, credentials)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "grpc could not bind it"
        raise StartupError(f"cannot listen on {address}: {reason}; choose another with --listen") from error
