"""The endpoint that Prometheus scrapes."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server

from vistazo_server.errors import StartupError


@contextmanager
def metrics_endpoint(address: str, registry: CollectorRegistry) -> Iterator[int]:
    """Serve the registry on HOST:PORT from a thread of its own; gives the port.

    Raises StartupError when the address cannot be had.
    """
    host, _, port = address.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise StartupError(
            f"cannot serve metrics on {address}: {error.strerror or error}; "
            "choose another with --metrics-listen"
        ) from error
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
