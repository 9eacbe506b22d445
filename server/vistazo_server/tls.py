"""Certificates: TLS for the gRPC port, from files that are read again when they change.

Every handshake looks at the files, so that a rotation needs no restart and no signal; connections that are
open keep the certificate that they began with. A new file that cannot be used (half written, or a key that
does not belong to its certificate) is logged once and leaves the old ones in force.
"""

import datetime as dt
import re
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from vistazo_server.errors import StartupError, one_line

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Contents:
    """The bytes of the files, in PEM."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


class Certificates:
    """The server's certificate chain and private key and, for mTLS, whose clients it trusts.

    All are PEM files: `certificate` with the leaf first, `key` without a password, `client_ca` with one or
    several authorities; with it, a client without a certificate of theirs is turned away in the handshake.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._lock = threading.Lock()  # grpc asks from several threads
        self._current: _Contents | None = None
        self._failure = ""
        self.expires_at = 0.0
        """When the certificate ends, in seconds since 1970."""

    def credentials(self) -> grpc.ServerCredentials:
        """Return what the gRPC port is opened with. Raises StartupError when the files cannot be used."""
        try:
            contents = self._read()
        except _UnusableError as error:
            raise StartupError(f"TLS: {error}") from None
        self._use(contents)
        return grpc.dynamic_ssl_server_credentials(
            _configuration(contents),
            self._changed,  # type: ignore[arg-type]  # grpc takes None for no change; its stubs do not know
            require_client_authentication=self._client_ca is not None,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the certificates when they are new, None to go on with the old: grpc asks in a handshake."""
        with self._lock:
            try:
                contents = self._read()
            except _UnusableError as error:
                if str(error) != self._failure:  # not at each handshake
                    self._failure = str(error)
                    log.error("certificates_unusable", reason=self._failure, meaning="the old ones stay")  # noqa: TRY400
                return None
            self._failure = ""
            if contents == self._current:
                return None
            log.info("certificates_reloaded", certificate=str(self._certificate))
            self._use(contents)
            return _configuration(contents)

    def _use(self, contents: _Contents) -> None:
        self._current = contents
        self.expires_at = not_after(contents.certificate)
        if self.expires_at < time.time():
            log.error("certificate_expired", certificate=str(self._certificate), meaning="clients refuse it")

    def _read(self) -> _Contents:
        """Return the files' contents, which belong together. Raises _UnusableError."""
        contents = self._bytes()
        if contents == self._current:
            return contents
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Without a password given, OpenSSL would ask for one on the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = one_line(error, characters=200)
            raise _UnusableError(
                f"{self._certificate} and {self._key}: expected a PEM certificate and its private key "
                f"without a password, got: {reason}"
            ) from None
        if contents.client_ca is not None:
            try:
                context.load_verify_locations(cadata=contents.client_ca.decode("ascii"))
            except (OSError, ValueError) as error:
                reason = one_line(error, characters=200)
                raise _UnusableError(
                    f"{self._client_ca}: expected certificates of authorities in PEM, got: {reason}"
                ) from None
        if self._bytes() != contents:
            raise _UnusableError(f"{self._certificate}: it is being written")
        return contents

    def _bytes(self) -> _Contents:
        return _Contents(
            certificate=_read_file(self._certificate),
            key=_read_file(self._key),
            client_ca=None if self._client_ca is None else _read_file(self._client_ca),
        )


class _UnusableError(Exception):
    """The files cannot be used; the message says which and why, and holds nothing secret."""


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _UnusableError(f"{path} cannot be read: {error.strerror}") from None


def _configuration(contents: _Contents) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(contents.key, contents.certificate)], root_certificates=contents.client_ca
    )


def not_after(chain: bytes) -> float:
    """Return when the first certificate of a PEM chain ends, in seconds since 1970.

    The standard library tells this only of a peer's certificate. The field's place is RFC 5280, section 4.1:
    the certificate's first part has an optional version, then serial number, algorithm, issuer, validity.
    """
    pem = re.search(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", chain, re.DOTALL)
    if pem is None:
        raise ValueError("no certificate in PEM")
    der = ssl.PEM_cert_to_DER_cert(pem.group().decode("ascii"))
    _, certificate, _ = _element(der, 0)
    _, at, _ = _element(der, certificate)
    tag, _, end = _element(der, at)
    if tag == _VERSION:
        at = end
    for _ in ("serial number", "algorithm", "issuer"):
        _, _, at = _element(der, at)
    _, at, _ = _element(der, at)
    _, _, at = _element(der, at)  # not before
    tag, begin, end = _element(der, at)
    digits = der[begin:end].decode("ascii").removesuffix("Z")
    if tag == _UTC_TIME:  # two digits of a year, which is before 2050
        digits = ("19" if digits >= "50" else "20") + digits
    return dt.datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=dt.UTC).timestamp()


_VERSION = 0xA0
_UTC_TIME = 0x17


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Return the tag of the DER element at `at`, where its contents begin, and where they end."""
    tag, length, begin = der[at], der[at + 1], at + 2
    if length & 0x80:  # so many bytes of length follow
        count = length & 0x7F
        length, begin = int.from_bytes(der[begin : begin + count], "big"), begin + count
    return tag, begin, begin + length
