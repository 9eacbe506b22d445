"""Which server gets which request: names with several addresses, lists, and servers that are down."""

import sys
import threading
import time

import pytest

from support.dns import NameServer
from vistazo_client import UnavailableError

PATIENCE_SECONDS = 30.0

# Only Linux gives every machine all of 127.0.0.0/8.
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a second loopback address")


@pytest.fixture
def two(start_at):
    """Two servers at the same port of two addresses."""
    first = start_at("127.0.0.1:0")
    return first, start_at(f"127.0.0.2:{port(first)}")


@pytest.fixture
def names():
    server = NameServer("127.0.0.1", "127.0.0.2")
    yield server
    server.close()


def port(server):
    return server.address.rpartition(":")[2]


def counts(*servers):
    return [len(server.service.requests) for server in servers]


def ask_until(client, condition, what):
    pause = threading.Event()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        client.classify(b"a cat")
        pause.wait(0.02)


def test_every_address_of_a_name_is_used(open_client, two, names):
    with open_client(f"dns://127.0.0.1:{names.port}/vistazo.test:{port(two[0])}") as client:
        ask_until(client, lambda: min(counts(*two)) >= 10, "one address gets nothing")

    first, second = counts(*two)
    # One of them connects first, and has the first few to itself.
    assert abs(first - second) < 10


def test_a_name_is_looked_up_again_when_its_server_goes(open_client, start_at, names):
    names.addresses = ["127.0.0.1"]
    first = start_at("127.0.0.1:0")
    with open_client(f"dns://127.0.0.1:{names.port}/vistazo.test:{port(first)}", timeout=20) as client:
        client.classify(b"a cat")
        second = start_at(f"127.0.0.2:{port(first)}")
        names.addresses = ["127.0.0.2"]
        first.stop()
        client.wait_until_ready(timeout=PATIENCE_SECONDS)
        ask_until(client, lambda: counts(second) >= [1], "the new address gets nothing")


@pytest.mark.parametrize("form", ["{0},{1}", "localhost:{2},{1}", "localhost:{2},localhost:{3}"])
def test_a_list_is_gone_through_in_turn(open_client, start_at, form):
    servers = start_at("127.0.0.1:0"), start_at("127.0.0.1:0")
    address = form.format(*(server.address for server in servers), *map(port, servers))
    with open_client(address) as client:
        ask_until(client, lambda: min(counts(*servers)) >= 10, "one of the list gets nothing")

    first, second = counts(*servers)
    assert abs(first - second) < 10


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_that_is_down_costs_nobody_an_error(open_client, server, nobody, host):
    address = f"{host}:{port(server)},{host}:{nobody.rpartition(':')[2]}"
    with open_client(address, timeout=5) as client:
        for number in range(50):
            assert client.classify(b"%d" % number).top.label == f"{number}"
        assert len(dict(client.classify_stream((number, b"a cat") for number in range(100)))) == 100


def test_when_all_are_down_the_error_names_them_all(open_client, nobody):
    address = f"{nobody},localhost:{nobody.rpartition(':')[2]}"
    with open_client(address, retries=1) as client, pytest.raises(UnavailableError) as failure:
        client.classify(b"a cat")

    assert str(failure.value) == f"no server at {address} (connection refused)"
