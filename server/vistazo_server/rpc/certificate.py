"""What certificates say of themselves: when they end, what key they are for, and what it may be used for.

The standard library tells this only of a peer's certificate. The places of the fields are those of RFC 5280,
section 4.1; each is a DER element: a tag, a length, contents.
"""

import binascii
import datetime as dt
import re
from dataclasses import dataclass
from typing import Final

_KEYS: Final = {
    bytes.fromhex("2a864886f70d010101"): "RSA",
    bytes.fromhex("2a864886f70d01010a"): "RSA-PSS",
    bytes.fromhex("2a8648ce380401"): "DSA",
    bytes.fromhex("2b6570"): "Ed25519",
    bytes.fromhex("2b6571"): "Ed448",
}
"""Names of keys by the object identifier of their algorithm (RFC 8017, 3279 and 8410)."""

_EC_KEY: Final = bytes.fromhex("2a8648ce3d0201")
_CURVES: Final = {
    bytes.fromhex("2b81040021"): "P-224",
    bytes.fromhex("2a8648ce3d030107"): "P-256",
    bytes.fromhex("2b81040022"): "P-384",
    bytes.fromhex("2b81040023"): "P-521",
    bytes.fromhex("2b8104000a"): "secp256k1",
}
"""Names of elliptic curves by their object identifiers (RFC 5480)."""

_KEY_USAGE: Final = bytes.fromhex("551d0f")
_DIGITAL_SIGNATURE: Final = 0x80
_EXTENDED_KEY_USAGE: Final = bytes.fromhex("551d25")
_SERVER_AUTH: Final = bytes.fromhex("2b06010505070301")

_VERSION, _EXTENSIONS = 0xA0, 0xA3
_UTC_TIME: Final = 0x17
_OBJECT_IDENTIFIER: Final = 0x06

_PEM: Final = re.compile(
    rb"^-----BEGIN (?P<label>(?:X509 |TRUSTED )?CERTIFICATE)-----(?P<base64>.*?)^-----END (?P=label)-----",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Certificate:
    """What one certificate says."""

    issuer: bytes
    """Who signed it; equal to the other's subject."""
    subject: bytes
    not_after: float
    """When it ends, in seconds since 1970."""
    key: str
    """What its key is: RSA, the name of a curve, …"""
    may_sign: bool
    """Whether its key may sign handshakes: the key usage says so, or there is none."""
    may_serve: bool
    """Whether it may be a server's: the extended key usage says so, or there is none."""


def read_certificates(pem: bytes) -> list[Certificate]:
    """Return the certificates of a PEM file, at least one. Raises ValueError."""
    blocks = list(_PEM.finditer(pem))
    if not blocks:
        raise ValueError("no certificate in PEM")
    if any(block["label"].startswith(b"TRUSTED") for block in blocks):
        raise ValueError("a TRUSTED CERTIFICATE, which only OpenSSL reads")
    try:
        return [_certificate(binascii.a2b_base64(block["base64"])) for block in blocks]
    except (IndexError, ValueError):
        raise ValueError("a certificate that is not encoded in DER") from None


def not_after(chain: bytes) -> float:
    """Return when the first certificate of a PEM chain ends, in seconds since 1970. Raises ValueError."""
    return read_certificates(chain)[0].not_after


@dataclass(frozen=True, slots=True)
class _Element:
    tag: int
    contents: bytes

    def parts(self) -> list["_Element"]:
        """Return the elements that the contents are made of."""
        return _elements(self.contents)


def _elements(der: bytes) -> list[_Element]:
    elements, at = [], 0
    while at < len(der):
        tag, length, begin = der[at], der[at + 1], at + 2
        if length & 0x80:  # so many bytes of length follow
            count = length & 0x7F
            length, begin = int.from_bytes(der[begin : begin + count], "big"), begin + count
        at = begin + length
        if at > len(der):
            raise ValueError("cut short")
        elements.append(_Element(tag, der[begin:at]))
    return elements


def _certificate(der: bytes) -> Certificate:
    fields = _elements(der)[0].parts()[0].parts()
    extensions = _extensions(fields)
    if fields[0].tag == _VERSION:
        del fields[0]
    _serial_number, _algorithm, issuer, validity, subject, key = fields[:6]
    return Certificate(
        issuer=issuer.contents,
        subject=subject.contents,
        not_after=_time(validity.parts()[1]),
        key=_key(key),
        may_sign=_KEY_USAGE not in extensions or _says_digital_signature(extensions[_KEY_USAGE]),
        may_serve=_EXTENDED_KEY_USAGE not in extensions or _has_server_auth(extensions[_EXTENDED_KEY_USAGE]),
    )


def _extensions(fields: list[_Element]) -> dict[bytes, _Element]:
    """Return the extensions' values, each wrapped in a string of bytes, by object identifier."""
    if fields[-1].tag != _EXTENSIONS:
        return {}
    extensions = [extension.parts() for extension in fields[-1].parts()[0].parts()]
    return {parts[0].contents: parts[-1] for parts in extensions}


def _says_digital_signature(key_usage: _Element) -> bool:
    # A string of bits; before the first of them, how many of the last byte are not used.
    return bool(int.from_bytes(key_usage.parts()[0].contents[1:2], "big") & _DIGITAL_SIGNATURE)


def _has_server_auth(extended_key_usage: _Element) -> bool:
    # That any purpose is allowed (anyExtendedKeyUsage) counts for no client.
    return any(purpose.contents == _SERVER_AUTH for purpose in extended_key_usage.parts()[0].parts())


def _key(key: _Element) -> str:
    algorithm, *parameters = key.parts()[0].parts()
    if algorithm.contents != _EC_KEY:
        return _KEYS.get(algorithm.contents, "another kind of key")
    if not parameters or parameters[0].tag != _OBJECT_IDENTIFIER:
        return "an elliptic curve given by its parameters"
    return _CURVES.get(parameters[0].contents, "another elliptic curve")


def _time(time: _Element) -> float:
    digits = time.contents.decode("ascii").removesuffix("Z")
    if time.tag == _UTC_TIME:  # two digits of a year, which is before 2050
        digits = ("19" if digits >= "50" else "20") + digits
    return dt.datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=dt.UTC).timestamp()
