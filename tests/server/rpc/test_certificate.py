"""What is read from certificates is what they were made with."""

import base64
import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from support.certificates import Authority, chain
from support.key_kinds import KINDS, USES, authority, issue, key_usage
from vistazo_server.rpc.certificate import not_after, read_certificates

NAMES = {kind: kind for kind in ("P-224", "P-256", "P-384", "P-521", "secp256k1", "Ed25519", "Ed448")} | {
    "RSA 2048": "RSA",
    "RSA 4096": "RSA",
    "DSA 2048": "DSA",
    "brainpoolP256r1": "another elliptic curve",
}
RSA = bytes.fromhex("06092a864886f70d010101")
"""The object identifier of RSA keys, as it is encoded."""


def read(*extensions: x509.ExtensionType):
    return read_certificates(issue("P-256", authority(), extensions=extensions).chain)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_key_is_told_by_its_name(kind):
    (leaf,) = read_certificates(issue(kind, authority()).chain)

    assert leaf.key == NAMES[kind]
    assert leaf.may_sign
    assert leaf.may_serve


@pytest.mark.parametrize(("last", "name"), [("0a", "RSA-PSS"), ("7f", "another kind of key")])
def test_other_algorithms_of_rsa_keys_are_not_taken_for_rsa(last, name):
    der = issue("RSA 2048", authority()).certificate.public_bytes(Encoding.DER)
    # The key's comes last: the one of the signature, before it, is of the authority's P-256.
    assert der.count(RSA) == 1
    other = base64.encodebytes(der.replace(RSA, RSA[:-1] + bytes.fromhex(last)))

    pem = b"-----BEGIN CERTIFICATE-----\n" + other + b"-----END CERTIFICATE-----\n"
    assert read_certificates(pem)[0].key == name


def test_a_chain_is_read_in_its_order_and_tells_who_issued_whom():
    intermediate = issue("Ed25519", authority(), is_authority=True)
    leaf = issue("RSA 2048", intermediate)

    first, second = read_certificates(b"What follows is a chain.\n" + leaf.chain + b"That was it.\n")

    assert (first.key, second.key) == ("RSA", "Ed25519")
    assert first.issuer == second.subject
    assert leaf.certificate.issuer.public_bytes().endswith(first.issuer)
    assert second.issuer != second.subject


@pytest.mark.parametrize("use", USES[:7])
def test_only_a_key_usage_with_digital_signature_lets_it_sign(use):
    assert read(key_usage(use)).may_sign == (use == "digital_signature")
    assert read(key_usage("digital_signature", use)).may_sign
    assert read().may_sign


def test_a_key_usage_of_two_bytes_is_read_by_its_first():
    assert not read(key_usage("key_agreement", "decipher_only")).may_sign
    assert read(key_usage("digital_signature", "key_agreement", "decipher_only")).may_sign


@pytest.mark.parametrize(
    ("purposes", "expected"),
    [
        ([ExtendedKeyUsageOID.SERVER_AUTH], True),
        ([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH], True),
        ([ExtendedKeyUsageOID.CLIENT_AUTH], False),
        ([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE], False),
    ],
)
def test_only_an_extended_key_usage_with_server_auth_lets_it_serve(purposes, expected):
    assert read(x509.ExtendedKeyUsage(purposes)).may_serve is expected


def test_extensions_that_nobody_knows_are_passed_over():
    private = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\xff no DER \x84")

    assert read(private, key_usage("digital_signature")).may_sign


@pytest.mark.parametrize("year", [1999, 2026, 2049, 2050, 2199])
def test_when_a_certificate_ends_is_read_from_it(year):
    """Before 2050 the year has two digits in it, then four."""
    end = dt.datetime(year, 5, 6, 7, 8, 9, tzinfo=dt.UTC)

    assert not_after(chain(Authority().issue(ends=end))) == end.timestamp()


def test_the_older_header_is_read_and_openssls_own_is_not():
    pem = authority().chain
    old, trusted = (
        pem.replace(b" CERTIFICATE-", b" " + kind + b" CERTIFICATE-") for kind in (b"X509", b"TRUSTED")
    )

    assert read_certificates(old) == read_certificates(pem)
    with pytest.raises(ValueError, match="TRUSTED CERTIFICATE"):
        read_certificates(trusted)
    with pytest.raises(ValueError, match="TRUSTED CERTIFICATE"):
        read_certificates(pem + trusted)


def test_what_is_no_certificate_is_a_value_error_wherever_it_is_cut():
    pem = authority().chain
    der = authority().certificate.public_bytes(Encoding.DER)
    for count in range(len(der)):
        cut = base64.encodebytes(der[:count])
        with pytest.raises(ValueError, match="not encoded in DER"):
            read_certificates(b"-----BEGIN CERTIFICATE-----\n" + cut + b"-----END CERTIFICATE-----\n")
    for nothing in (b"", b"no certificate", pem[:200], pem.replace(b"END", b"FIN")):
        with pytest.raises(ValueError, match="no certificate in PEM"):
            read_certificates(nothing)
