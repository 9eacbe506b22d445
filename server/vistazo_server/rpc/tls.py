"""Certificates: TLS for the gRPC port, from files that are read again when they change.

Every handshake looks at the files, so that a rotation needs no restart and no signal; connections that are
open keep the certificate that they began with. A new file that cannot be used (half written, a key that does
not belong to its certificate, or a kind of key that no handshake succeeds with) is logged once and leaves the
old ones in force.
"""

import codecs
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import structlog

from vistazo_server.errors import StartupError, one_line
from vistazo_server.rpc.certificate import Certificate, not_after, read_certificates

log = structlog.get_logger(__name__)

# OpenSSL, which checks the files below, knows more kinds than grpc's BoringSSL, which uses them. Tried with
# grpcio 1.85 at both ends: with Ed25519 and P-521 each handshake fails, all others are not even read.
SERVER_KEYS: Final = ("RSA", "P-256", "P-384")
"""Keys that handshakes succeed with."""

AUTHORITY_KEYS: Final = (*SERVER_KEYS, "P-224", "P-521", "Ed25519")
"""Keys whose signatures under other certificates are checked; tried likewise."""


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
        _check_chain(self._certificate, contents.certificate)
        if contents.client_ca is not None:
            try:
                context.load_verify_locations(cadata=contents.client_ca.decode("ascii"))
            except (OSError, ValueError) as error:
                reason = one_line(error, characters=200)
                raise _UnusableError(
                    f"{self._client_ca}: expected certificates of authorities in PEM, got: {reason}"
                ) from None
            _check_authorities(self._client_ca, contents.client_ca)
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


def _check_chain(path: Path, pem: bytes) -> None:
    """Raise _UnusableError for a chain, its leaf first, that every client of grpc's would turn away.

    That it has expired is no reason: the clock may be wrong here and right there.
    """
    leaf, *others = _certificates(path, pem)
    issuers = [one for one in others if one.subject == leaf.issuer]
    if leaf.key not in SERVER_KEYS:
        expected, got = f"a certificate for a key that grpc can serve with: {_any_of(SERVER_KEYS)}", leaf.key
    elif not leaf.may_sign:
        expected, got = "a certificate whose key usage has digitalSignature", "one without"
    elif not leaf.may_serve:
        expected, got = "a certificate whose extended key usage has serverAuth", "one without"
    elif issuers and not any(one.key in AUTHORITY_KEYS for one in issuers):
        expected, got = f"an issuer with a key that grpc can check: {_any_of(AUTHORITY_KEYS)}", issuers[0].key
    else:
        return
    raise _UnusableError(f"{path}: expected {expected}; got {got}")


def _check_authorities(path: Path | None, pem: bytes) -> None:
    """Raise _UnusableError for authorities whose clients would all be turned away."""
    authorities = _certificates(path, pem)
    if not any(one.key in AUTHORITY_KEYS for one in authorities):
        raise _UnusableError(
            f"{path}: expected an authority with a key that grpc can check: {_any_of(AUTHORITY_KEYS)}; "
            f"got {authorities[0].key}"
        )


def _any_of(keys: Sequence[str]) -> str:
    return f"{', '.join(keys[:-1])} or {keys[-1]}"


def _certificates(path: Path | None, pem: bytes) -> list[Certificate]:
    try:
        return read_certificates(pem)
    except ValueError as error:
        raise _UnusableError(f"{path}: expected certificates in PEM, got {error}") from None


def _read_file(path: Path) -> bytes:
    try:
        # OpenSSL skips a byte order mark, grpc does not.
        return path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise _UnusableError(f"{path} cannot be read: {error.strerror}") from None


def _configuration(contents: _Contents) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(contents.key, contents.certificate)], root_certificates=contents.client_ca
    )
