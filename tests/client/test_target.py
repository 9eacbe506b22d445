"""Which targets stand for the addresses that callers write."""

import pytest

from vistazo_client import Client
from vistazo_client._target import find_targets, is_loopback, parse_addresses


def uris(address, *, tls=False):
    return [target.uri for target in find_targets(parse_addresses(address), tls=tls)]


@pytest.mark.parametrize(
    ("address", "targets"),
    [
        ("127.0.0.1:8001", ["127.0.0.1:8001"]),
        ("vistazo.example:8001", ["vistazo.example:8001"]),
        ("dns:///vistazo.example:8001", ["dns:///vistazo.example:8001"]),
        ("unix:/run/vistazo.sock", ["unix:/run/vistazo.sock"]),
        ("ipv4:10.0.0.1:1,10.0.0.2:2", ["ipv4:10.0.0.1:1,10.0.0.2:2"]),
        ("10.0.0.1:1,10.0.0.2:2", ["ipv4:10.0.0.1:1,10.0.0.2:2"]),
        (["10.0.0.1:1", "10.0.0.2:2"], ["ipv4:10.0.0.1:1,10.0.0.2:2"]),
        ("[::1]:1, [::2]:2", ["ipv6:[::1]:1,[::2]:2"]),
        ("10.0.0.1:1,[::1]:1", ["ipv4:10.0.0.1:1", "ipv6:[::1]:1"]),
        ("a.example:1,b.example:2", ["a.example:1", "b.example:2"]),
        ("a.example:1,10.0.0.1:1,10.0.0.2:1", ["a.example:1", "ipv4:10.0.0.1:1,10.0.0.2:1"]),
        ("10.0.0.1,10.0.0.2", ["10.0.0.1", "10.0.0.2"]),
        ("::1,::2", ["::1", "::2"]),
    ],
)
def test_addresses_become_as_few_targets_as_can_be(address, targets):
    assert uris(address) == targets


def test_with_tls_every_address_has_its_own_target_and_so_its_own_name():
    assert uris("10.0.0.1:1,10.0.0.2:2", tls=True) == ["10.0.0.1:1", "10.0.0.2:2"]


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("localhost:8001", True),
        ("127.8.9.1:8001", True),
        ("[::1]:8001", True),
        ("unix:/run/vistazo.sock", True),
        ("dns:///localhost:8001", True),
        ("dns://10.0.0.53/vistazo.example:8001", False),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", True),
        ("ipv6:[::1]:1,[::1]:2", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("localhost.example:8001", False),
        ("127.0.0.1.example:8001", False),
        ("10.0.0.1:8001", False),
        ("vistazo:8001", False),
    ],
)
def test_only_this_machine_is_loopback(address, loopback):
    assert is_loopback(address) is loopback


@pytest.mark.parametrize("address", ["", [], " ", "a:1,", "a:1,,b:2", ["a:1", ""], "a:1,https://b:2"])
def test_a_list_with_no_address_in_it_is_refused(address):
    with pytest.raises(ValueError, match="expected the server's address as HOST:PORT"):
        Client(address)


def test_a_client_says_all_its_addresses():
    with Client(["a.example:1", "b.example:2"]) as client:
        assert client.address == "a.example:1,b.example:2"
